"""`attention_pattern` and `segment_memory` in a plan: who can have them, and how far a token looks back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dtrain.config.origins import Loaded
from dtrain.config.schema import AttentionPattern, Config
from dtrain.errors import BadInput
from dtrain.hardware.profiles import Profile
from dtrain.models.facts import ModelFacts
from dtrain.planner.parallel import OWN_ATTENTION

BACK_ENDS = {"attention_pattern": ("auto", "flex", "sdpa"), "segment_memory": ("auto", "sdpa")}
UNUSED = {"sliding": ("global_tokens", "random_blocks"), "longformer": ("random_blocks",), "bigbird": ()}
NEEDED = {"sliding": (), "longformer": ("global_tokens",), "bigbird": ("random_blocks",)}


def errors_of(loaded: Loaded, facts: ModelFacts) -> Iterator[BadInput]:
    """What the config asks of attention and this model, or the back end it names, cannot have."""
    config = loaded.config
    for key, able in BACK_ENDS.items():
        if getattr(config, key) is None:
            continue
        if config.attention not in able:
            message, fix = f"{config.attention} has no {key}", f"set attention: auto, or leave {key} out"
            yield _at(loaded, "attention", message, config.attention, fix, ", ".join(able))
        if why := _cannot(facts):
            yield _at(loaded, key, f"{facts.name} cannot take it: {why}", None, f"leave {key} out")
    if config.attention_pattern is not None:
        yield from _incomplete(loaded, config.attention_pattern)


def _cannot(facts: ModelFacts) -> str | None:
    if facts.family in OWN_ATTENTION:
        return f"{facts.family} computes attention itself"
    limited = any(layer.attention_window is not None for layer, _ in facts.layers)
    limited = limited or bool(facts.config.get("attention_chunk_size"))
    return "its layers look back over windows of their own" if limited else None


def _incomplete(loaded: Loaded, pattern: AttentionPattern) -> Iterator[BadInput]:
    kind = pattern.kind
    for name in UNUSED[kind]:
        if getattr(pattern, name):
            fix = f"leave {name} out, or kind: {'bigbird' if name == 'random_blocks' else 'longformer'}"
            yield _at(loaded, f"attention_pattern.{name}", f"{kind} has no {name}", getattr(pattern, name), fix)
    for name in NEEDED[kind]:
        if not getattr(pattern, name):
            yield _at(loaded, f"attention_pattern.{name}", f"{kind} needs {name}", 0, f"{name}: 1 or more")


def _at(loaded: Loaded, key: str, message: str, value: object, fix: str, allowed: str | None = None) -> BadInput:
    origin = loaded.origin(key)
    return BadInput(message, file=origin.file, line=origin.line, key=key, value=value, fix=fix, allowed=allowed)


TOLD_UNDER = "dtrain_attention"
"""The key of a model's config.json that says what its tokens saw in a training of ours."""


def forgotten(config: Config, facts: ModelFacts) -> tuple[str, ...]:
    """Of a base model that was trained with sparse attention, where this run says nothing of it."""
    told = facts.config.get(TOLD_UNDER)
    if not isinstance(told, dict) or look_back(config) is not None:
        return ()
    said = "; ".join(f"{name}: {value}" for name, value in told.items())
    return (f"{facts.name} was trained with {said}, and here its tokens attend to everything: say the same to keep it",)


def back_end(config: Config, profile: Profile) -> str:
    """flex from Ampere on for patterns, whose blocks nobody sees it leaves out; masked sdpa elsewhere."""
    capable = (profile.gpu.compute_capability or (0, 0)) >= (8, 0)
    return "flex" if config.segment_memory is None and capable else "sdpa"


def in_sight(config: Config, facts: ModelFacts) -> ModelFacts:
    """The model with the window that the config gives to all its layers: what memory and FLOPs are counted by."""
    tokens = look_back(config)
    if tokens is None:
        return facts
    layers = tuple((replace(layer, attention_window=tokens), count) for layer, count in facts.layers)
    return replace(facts, layers=layers)


def look_back(config: Config) -> int | None:
    """Tokens a token sees at most; with a segment memory, on average one segment and a half."""
    if config.segment_memory is not None:
        return -(-3 * config.segment_memory // 2)
    pattern = config.attention_pattern
    if pattern is None:
        return None
    return pattern.window + pattern.global_tokens + pattern.random_blocks * pattern.block_tokens
