"""Is what a command needs installed? Asked without importing it."""

from __future__ import annotations

import importlib.util

from dtrain.errors import PartMissing

TRAIN = ("torch", "transformers", "safetensors")


def require_train(what_for: str, parts: tuple[str, ...] = TRAIN) -> None:
    """PartMissing (exit 4) with the pip command, where a part of `dtrain[train]` is not there."""
    for part in parts:
        if importlib.util.find_spec(part) is None:
            raise PartMissing.of(part, "train", what_for)
