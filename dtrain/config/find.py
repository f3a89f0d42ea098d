"""Paths that a config names."""

from __future__ import annotations

from pathlib import Path

from dtrain import assets


def find_file(said: str, config_file: Path | None) -> Path | None:
    """A path that a config names: from the working directory, then the config's folder, then what dtrain ships."""
    try:
        relative = Path(said).expanduser()
        folders = [Path(), *([config_file.parent] if config_file is not None else [])]
        for folder in folders:
            if (folder / relative).exists():
                return folder / relative
        return None if relative.is_absolute() else assets.shipped(said)
    except (OSError, ValueError, RuntimeError):  # a name that no file can have; a home that is not there
        return None
