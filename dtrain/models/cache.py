"""The local Hugging Face cache, by its path rules; nothing of huggingface_hub is imported."""

from __future__ import annotations

import os
from pathlib import Path


def cached_config(name: str, revision: str) -> Path | None:
    """config.json in the local Hugging Face cache (`models--ORG--NAME/snapshots/COMMIT`), or None."""
    folder = _cache() / f"models--{name.replace('/', '--')}"
    try:
        reference = folder / "refs" / revision
        commit = reference.read_text().strip() if reference.is_file() else revision
        path = folder / "snapshots" / commit / "config.json"
        return path if path.is_file() else None
    except (OSError, ValueError):
        return None


def cache_home() -> Path:
    told = os.environ.get("HF_HOME")
    if told:
        return Path(told).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "huggingface"


def _cache() -> Path:
    told = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(told).expanduser() if told else cache_home() / "hub"
