"""How many positions a model has, with `rope_scaling` or without, and what to do where a window needs more."""

from __future__ import annotations

import math
from collections.abc import Iterator

from dtrain.config.origins import Loaded
from dtrain.config.schema import Config
from dtrain.errors import BadInput
from dtrain.models.facts import ModelFacts
from dtrain.planner.parallel import LENGTH_DEPENDENT_ROPE, rope_kinds

WITHOUT_ROTATION = frozenset({"gpt2", "opt", "gpt_bigcode", "bloom", "mpt"})
"""Families whose positions are learned, or biases by distance (ALiBi)."""


def position_errors(loaded: Loaded, facts: ModelFacts) -> Iterator[BadInput]:
    """A window beyond the positions, with the choices there are; scaling of a model that rotates nothing."""
    config = loaded.config
    if config.rope_scaling is not None and (why := _cannot_scale(facts)):
        yield _at(loaded, "rope_scaling", f"{facts.name} {why}", None, "leave rope_scaling out")
        return
    yield from _by_row(loaded, facts)
    window, positions = config.sequence_len, positions_of(config, facts)
    if positions is None or window <= positions or config.plan_as is not None:
        return
    if facts.learned_position_parameters:
        message = f"{facts.name} has learned positions for {positions} tokens only"
        yield _at(loaded, "sequence_len", message, window, f"sequence_len: {positions}", f"at most {positions}")
        return
    if _cannot_scale(facts):
        return
    message = f"the {positions} positions of {facts.name} end before this window"
    factor = math.ceil(window / original_positions(facts))
    fix = f"sequence_len: {positions}, or rope_scaling: {{type: yarn, factor: {factor}}}"
    yield _at(loaded, "sequence_len", message, window, fix, f"at most {positions}")


def _by_row(loaded: Loaded, facts: ModelFacts) -> Iterator[BadInput]:
    """Rotation that the model itself takes by the longest row at hand (Phi 3's longrope): rows beyond the original
    positions cannot share a micro-batch with shorter ones, or these would be rotated otherwise than alone."""
    config, kinds = loaded.config, rope_kinds(facts.config) & LENGTH_DEPENDENT_ROPE
    alone = config.micro_batch_size == 1 and not config.sample_packing
    if not kinds or config.rope_scaling or alone or config.plan_as is not None or facts.max_positions is None:
        return
    original = original_positions(facts)
    if config.sequence_len > original:
        message = (
            f"{facts.name} rotates by the length at hand ({min(kinds)}) beyond {original} tokens, so rows cannot mix"
        )
        fix = f"micro_batch_size: 1 and sample_packing: false, or sequence_len: {original}"
        yield _at(loaded, "sequence_len", message, config.sequence_len, fix)


def position_warnings(loaded: Loaded, facts: ModelFacts) -> tuple[str, ...]:
    """Of a plan for another framework, which may run beyond them."""
    window, positions = loaded.config.sequence_len, facts.max_positions
    if loaded.config.plan_as is None or positions is None or window <= positions:
        return ()
    return (f"sequence_len {window} is beyond the {positions} positions {facts.name} was trained for",)


def positions_of(config: Config, facts: ModelFacts) -> int | None:
    """Tokens of a row that the model has positions for; None: any number."""
    if config.rope_scaling is None or facts.max_positions is None:
        return facts.max_positions
    scaling = config.rope_scaling
    return math.floor(scaling.factor * (scaling.original_max_position_embeddings or original_positions(facts)))


def original_positions(facts: ModelFacts) -> int:
    """Before a scaling that the model itself was published with (Llama 3.1: 8,192 of 131,072)."""
    assert facts.max_positions is not None
    said = facts.config.get("rope_parameters") or facts.config.get("rope_scaling") or {}
    told = said.get("original_max_position_embeddings") or facts.config.get("original_max_position_embeddings")
    return int(told or facts.max_positions)


def _cannot_scale(facts: ModelFacts) -> str | None:
    if facts.family in WITHOUT_ROTATION:
        return "has no rotary positions to scale"
    said = facts.config.get("rope_parameters") or {}
    nested = any(isinstance(value, dict) for value in said.values()) or facts.family == "gemma3_text"
    return "rotates its layers in different ways, which one scaling cannot say" if nested else None


def _at(loaded: Loaded, key: str, message: str, value: object, fix: str, allowed: str | None = None) -> BadInput:
    origin = loaded.origin(key)
    return BadInput(message, file=origin.file, line=origin.line, key=key, value=value, fix=fix, allowed=allowed)
