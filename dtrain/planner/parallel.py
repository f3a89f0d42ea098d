"""Which rows and layers may be split over ranks: what cannot work is refused before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dtrain.config.origins import Loaded
from dtrain.config.tree import error_at
from dtrain.errors import BadInput
from dtrain.models.facts import ModelFacts

OWN_ATTENTION = frozenset({"bloom", "falcon", "gptj", "mpt", "stablelm"})
"""Families whose attention transformers does not let one replace (`_supports_attention_backend`, 5.23)."""
LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
"""Rotary tables that transformers computes from the longest position at hand: of a rank's part, not of the row."""
SHARED_ATTENTION = ("auto", "flash_attention_3", "flash_attention_2", "varlen", "sdpa")
"""Back ends told of documents by lengths, not by a mask over a rank's own tokens."""


def parallel_errors(loaded: Loaded, facts: ModelFacts) -> list[BadInput]:
    """Everything about sequence and tensor parallel that this model cannot do."""
    errors = list(_heads(loaded, facts))
    if loaded.config.plan_as is None and loaded.config.sequence_parallel_size > 1:
        errors += _sequence(loaded, facts)
    return errors


def _heads(loaded: Loaded, facts: ModelFacts) -> Iterator[BadInput]:
    for key in ("sequence_parallel_size", "tensor_parallel_size"):
        size = getattr(loaded.config, key)
        if facts.heads % size:
            allowed = ", ".join(str(one) for one in range(1, facts.heads + 1) if facts.heads % one == 0)
            message = f"{facts.heads} attention heads cannot be divided by {size}"
            yield _at(loaded, key, message, size, "choose a divisor of the heads", allowed)


def _sequence(loaded: Loaded, facts: ModelFacts) -> Iterator[BadInput]:
    config = loaded.config
    key, size, alone = "sequence_parallel_size", config.sequence_parallel_size, "sequence_parallel_size: 1"
    if config.sequence_len < size:
        message = f"a window of {config.sequence_len} tokens has fewer than one for each of {size} ranks"
        yield _at(loaded, "sequence_len", message, config.sequence_len, alone)
    if config.attention not in SHARED_ATTENTION:
        message = f"sees each rank's own tokens only: with {key} {size} documents would not be kept apart"
        fix, allowed = f"attention: auto, or {alone}", ", ".join(SHARED_ATTENTION)
        yield _at(loaded, "attention", message, config.attention, fix, allowed)
    if facts.family in OWN_ATTENTION:
        yield _at(loaded, key, f"{facts.family} computes attention by itself, over a rank's own tokens", size, alone)
    if facts.family == "gpt_oss":
        message = "gpt_oss has a learned sink for each head, which the attention that is shared out does not know"
        yield _at(loaded, key, message, size, alone)
    if problem := rope_problem(facts.config):
        yield _at(loaded, key, problem, size, alone)


def rope_problem(model_config: Mapping[str, Any]) -> str | None:
    """Why a model's rotary positions cannot be shared out, by its config.json; None where they can."""
    told = sorted(rope_kinds(model_config) & LENGTH_DEPENDENT_ROPE)
    if not told:
        return None
    return f"this model scales its positions ({told[0]}) by the length at hand, and a rank has only a part of a row"


def rope_kinds(model_config: Mapping[str, Any]) -> set[str]:
    """How rotary positions are scaled: in one section, or one for each kind of layer (`rope_parameters`, transformers
    5)."""
    said = [model_config.get(name) for name in ("rope_scaling", "rope_parameters")]
    sections = [section for section in said if isinstance(section, Mapping)]
    inner = [value for section in sections for value in section.values() if isinstance(value, Mapping)]
    kinds = [section.get("rope_type") or section.get("type") for section in (*sections, *inner)]
    return {kind for kind in kinds if isinstance(kind, str)}


def _at(loaded: Loaded, key: str, message: str, value: object, fix: str, allowed: str | None = None) -> BadInput:
    return error_at(loaded.origin(key), key, message, value=value, fix=fix, allowed=allowed)
