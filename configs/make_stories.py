"""Write the demo's data, `storyteller_tiny.jsonl`: synopses and short stories told by a small grammar.

    python configs/make_stories.py            writes configs/storyteller_tiny.jsonl again, byte for byte the same

The words lie in `stories/grammar.yaml`. A story is a hero, a place and a plot; what the synopsis promises (name, place,
object, helper, outcome) happens in the story, so a small model can learn to carry it over.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
GRAMMAR = HERE / "stories" / "grammar.yaml"
OUTPUT = HERE / "storyteller_tiny.jsonl"
COUNT = 792
SEED = 7
WORDS = (60, 130)
"""Shortest and longest story, in words."""

PRONOUNS = {
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
}


@dataclass(frozen=True)
class Story:
    synopsis: str
    short_story: str
    templates: tuple[str, ...]
    """The sentences of the grammar it was made from, the synopsis first."""
    carried: tuple[str, ...]
    """What both the synopsis and the story must mention."""


def article(noun: str) -> str:
    """`young baker` → `a young baker`."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def draw_slots(lists: Mapping[str, list[Any]], rng: random.Random) -> dict[str, str]:
    """One entry of each list. A mapping fills all its slots; a slot that holds a list is drawn once more."""
    slots: dict[str, str] = {}
    for name, entries in lists.items():
        entry = rng.choice(entries)
        for slot, value in (entry if isinstance(entry, dict) else {name: entry}).items():
            slots[slot] = rng.choice(value) if isinstance(value, list) else value
    return slots


def draw_hero(grammar: Mapping[str, Any], rng: random.Random) -> dict[str, str]:
    """One of the cast, who has always the same trade and home, with a trait for this story."""
    hero, trait = dict(rng.choice(grammar["heroes"])), rng.choice(grammar["traits"])
    kind = next(kind for kind, where in grammar["kinds"].items() if hero["place"] in where["places"])
    told = {"trait": trait, "a_trait": article(trait), "a_role": article(hero["role"]), "kind": kind}
    return hero | told | PRONOUNS[hero["pronoun"]] | {"about": rng.choice(grammar["kinds"][kind]["about"])}


def draw_helper(grammar: Mapping[str, Any], kinds: list[str], rng: random.Random) -> dict[str, str]:
    """`kind` picks the beats of its own (`meet_people`, `meet_animals`) where a plot has both."""
    kind = rng.choice(kinds)
    helper: dict[str, str] = dict(rng.choice(grammar[kind]))
    return helper | {"helper_kind": kind, "helper_noun": helper["the_helper"].removeprefix("the ")}


def definite(noun: str) -> str:
    """`a hairpin` → `the hairpin`, for its second mention."""
    head, _, rest = noun.partition(" ")
    return f"the {rest}" if head in ("a", "an") else noun


def with_forms(slots: Mapping[str, str]) -> dict[str, str]:
    """Adds `the_thing` and, for the start of a sentence, `Thing` beside `thing`; fills slots inside slots."""
    plain = {name: text.format_map(slots) for name, text in slots.items()}
    filled = {f"the_{name}": definite(text) for name, text in plain.items()} | plain
    return filled | {name.capitalize(): text[:1].upper() + text[1:] for name, text in filled.items()}


def sentences_of(beat: str, plot: Mapping[str, Any], grammar: Mapping[str, Any], slots: Mapping[str, str]) -> list[str]:
    """The templates a beat may be told with."""
    if beat == "scene":
        scenes: list[str] = grammar["kinds"][slots["kind"]]["scene"]
        return scenes
    by_helper = f"{beat}_{slots['helper_kind']}"
    found: list[str] = plot.get(by_helper) or plot.get(beat) or grammar["beats"][beat]
    return found


def tell(plot: Mapping[str, Any], grammar: Mapping[str, Any], rng: random.Random) -> Story:
    """One story of a plot."""
    helper = draw_helper(grammar, plot["helpers"], rng)
    slots = with_forms(draw_hero(grammar, rng) | helper | draw_slots(plot["draw"], rng))
    beats = [rng.choice(sentences_of(beat, plot, grammar, slots)) for beat in rng.choice(plot["patterns"])]
    synopsis = f"{rng.choice(plot['synopsis'])} {rng.choice(grammar['tails'])} {{Name}} in {{place}}."
    told = [template.format_map(slots) for template in beats]
    carried = tuple(slots[slot] for slot in plot["carried"])
    return Story(synopsis.format_map(slots), " ".join(told), (synopsis, *beats), carried)


def is_whole(story: Story) -> bool:
    """Of the right length, and everything carried is told in both texts."""
    if not WORDS[0] <= len(story.short_story.split()) <= WORDS[1]:
        return False
    return all(
        part.casefold() in text.casefold() for part in story.carried for text in (story.synopsis, story.short_story)
    )


def stories(count: int = COUNT, seed: int = SEED) -> Iterator[Story]:
    """`count` different stories, the plots in turn; the same for the same seed on every machine."""
    grammar = yaml.safe_load(GRAMMAR.read_text(encoding="utf-8"))
    rng = random.Random(seed)
    plots = list(grammar["plots"].values())
    seen: set[str] = set()
    while len(seen) < count:
        story = tell(plots[len(seen) % len(plots)], grammar, rng)
        if is_whole(story) and story.short_story not in seen:
            seen.add(story.short_story)
            yield story


def shares(told: list[Story]) -> list[tuple[str, float]]:
    """Each template with the share of stories that use it, the most frequent first."""
    uses = Counter(template for story in told for template in set(story.templates))
    return [(template, count / len(told)) for template, count in uses.most_common()]


def as_jsonl(told: list[Story]) -> str:
    rows = ({"synopsis": story.synopsis, "short_story": story.short_story} for story in told)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    written = list(stories())
    OUTPUT.write_text(as_jsonl(written), encoding="utf-8")
    print(f"{OUTPUT}: {len(written)} stories; most used sentence in {shares(written)[0][1]:.1%} of them")
