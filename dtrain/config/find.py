"""Paths that a config names."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from dtrain import assets
from dtrain.errors import BadInput

DATA_ENDINGS = {
    ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".arrow": "arrow",
}  # fmt: skip
"""File ending → what it holds; `.gz` and `.zst` after it are read through `datasets`."""
MAX_FILE_BYTES = 1_000_000
"""A config is a few kB; what is larger is some other file given by mistake."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


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


def read_small(path: Path, key: str | None = None) -> bytes:
    """A config file's bytes. BadInput for one that is too large, or never ends (/dev/zero); OSError."""
    with path.open("rb") as stream:
        content = stream.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise BadInput("too large for a config", file=str(path), key=key, allowed=f"{MAX_FILE_BYTES:,} bytes")
    return content


def refuse_missing_file(said: str, config_dir: Path | None, key: str) -> None:
    """For a path of a dataset that was not found: BadInput, unless it may be a name on the hub."""
    looks_like_a_file = Path(said).suffix.lower() in DATA_ENDINGS or said.startswith((".", "/", "~"))
    if not looks_like_a_file and _HUB_NAME.fullmatch(said):
        return
    folders = [Path(), *([config_dir] if config_dir is not None else [])]
    looked = [folder / Path(said).parent for folder in folders]
    beside = [path for folder in looked if folder.is_dir() for path in sorted(folder.iterdir())]
    by_name = {path.name: path for path in reversed(beside)}
    near = difflib.get_close_matches(Path(said).name, by_name, n=1)
    fix = f"did you mean {by_name[near[0]]}?" if near else f"looked in {', '.join(sorted({str(f) for f in looked}))}"
    raise BadInput("no such file or folder", key=key, value=said, fix=fix)
