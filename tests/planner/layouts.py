"""Layouts to estimate in tests: a model by its catalogue name on a profile, and what the test changes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from dtrain.hardware.profiles import resolve_profile
from dtrain.models.facts import ModelFacts
from dtrain.models.hub import load_facts
from dtrain.planner.setup import Setup


@lru_cache
def facts(name: str) -> ModelFacts:
    return load_facts(name, revision=None, config_dir=None)


def layout(model: str = "meta-llama/Llama-3.1-8B", profile: str = "h100x8", **changes: Any) -> Setup:
    """Llama-3.1-8B on eight H100 under ZeRO-2, two windows of 4096, unless the test says otherwise."""
    usual: dict[str, Any] = {
        "facts": facts(model),
        "profile": resolve_profile(profile),
        "sequence_len": 4096,
        "micro_batch_size": 2,
        "accumulation": 4,
        "sharding": "zero2",
        "attention": "flash_attention_2",
    }
    return Setup(**{**usual, **changes})
