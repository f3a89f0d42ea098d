"""Where the files that ship with dtrain lie: configs, ds_configs, slurm templates."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """A wheel carries copies in `dtrain/_assets`; a checkout has the folders themselves."""
    packaged = _PACKAGE / "_assets"
    return packaged if packaged.is_dir() else _PACKAGE.parent


def shipped(relative: str) -> Path | None:
    """A shipped file by the path a config uses for it (`ds_configs/zero3.json`), or None."""
    path = root() / relative
    return path if path.exists() else None
