"""The demo's data is what its generator writes, is varied, and keeps its promises."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from dtrain.config.load import load

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "storyteller-tiny.yaml"
LARGEST_SHARE = 0.10
"""No sentence of the grammar is in more than this share of the stories."""


@cache
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_stories", ROOT / "configs" / "make_stories.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


def rows() -> list[dict[str, str]]:
    text = (ROOT / "configs" / "storyteller_tiny.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_committed_file_is_what_the_generator_writes() -> None:
    module = generator()
    written = (ROOT / "configs" / "storyteller_tiny.jsonl").read_bytes()
    assert module.as_jsonl(list(module.stories())).encode() == written
    assert len(written) < 600_000


def test_another_seed_writes_other_stories() -> None:
    module = generator()
    here, there = ({story.short_story for story in module.stories(50, seed)} for seed in (1, 2))
    assert len(here & there) == 0


def test_rows_have_the_seeds_fields_and_lengths() -> None:
    found = rows()
    assert len(found) >= 400
    assert all(set(row) == {"synopsis", "short_story"} for row in found)
    assert all(60 <= len(row["short_story"].split()) <= 130 for row in found)


def test_every_synopsis_and_every_story_is_its_own() -> None:
    found = rows()
    assert len({row["short_story"] for row in found}) == len(found)
    assert len({row["synopsis"] for row in found}) >= 0.99 * len(found)


def test_the_vocabulary_is_wide_and_no_sentence_is_everywhere() -> None:
    words = {word for row in rows() for text in row.values() for word in re.findall(r"[a-z]+", text.lower())}
    assert len(words) >= 1000
    template, share = generator().shares(list(generator().stories()))[0]
    assert share <= LARGEST_SHARE, template


def test_what_the_synopsis_promises_happens_in_the_story() -> None:
    for story in generator().stories():
        assert len(story.carried) >= 5
        for part in story.carried:
            assert part.casefold() in story.synopsis.casefold(), (part, story.synopsis)
            assert part.casefold() in story.short_story.casefold(), (part, story.short_story)


def test_no_slot_is_left_open_and_articles_agree() -> None:
    for row in rows():
        text = f"{row['synopsis']} {row['short_story']}"
        assert not re.search(r"[{}]", text), text
        assert not re.search(r"\ba [aeio]|\ban (?!hour|honest)[^aeiou]|  ", text, re.IGNORECASE), text


def test_sample_prompts_are_new_to_the_model() -> None:
    prompts = load(CONFIG).config.sample_prompts
    assert prompts
    known = {row["synopsis"] for row in rows()}
    assert not known & set(prompts)


@pytest.fixture
def tiny_model() -> dict[str, int]:
    return dict(json.loads((ROOT / "configs" / "tiny_llama" / "config.json").read_text(encoding="utf-8")))


def test_the_tiny_model_fits_its_config(tiny_model: dict[str, int]) -> None:
    config = load(CONFIG).config
    assert config.train_tokenizer is not None
    assert config.train_tokenizer.vocab_size == tiny_model["vocab_size"]
    assert config.sequence_len <= tiny_model["max_position_embeddings"]


def test_every_key_of_the_demo_config_says_why() -> None:
    lines = CONFIG.read_text(encoding="utf-8").splitlines()
    keys = [line for line in lines if re.match(r"[a-z_0-9]+:", line) and not line.startswith("datasets")]
    assert [line for line in keys if "#" not in line] == []
