"""Which files hold a word that must stand in none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def holding(words: Iterable[str], *folders: Path) -> list[Path]:
    """Files below the folders: of a run here, of dtrain's home, of the machines that ever were."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20, "the folders of a run that was there"
    hidden = [word.encode() for word in words]
    return [path for path in files if any(word in path.read_bytes() for word in hidden)]
