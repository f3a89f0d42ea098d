"""What a run elsewhere needs from this machine: local files that its config names, tracked files of a project.

Files are named by their checksum, so that a machine is sent only what it lacks. `.env*` files never leave.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.errors import BadInput
from dtrain.launch.digest import sha256_of

INPUTS, PROJECT = "inputs", "project"
"""Folders beside the run's own, on the machine."""


@dataclass(frozen=True)
class Input:
    """A local file or folder and its place in the run's folder on the machine."""

    local: Path
    there: str


@dataclass(frozen=True)
class Shipped:
    """One file to send."""

    local: Path
    there: str
    size_bytes: int
    sha256: str


def moved(config: Mapping[str, Any], folder: str) -> tuple[dict[str, Any], list[Input]]:
    """The config as it reads on the machine, where the run lies in `folder`, and what must be sent for it.

    What names a file or folder here is sent; every other name (the hub's) stays as it is.
    """
    there, found = deepcopy(dict(config)), []
    for where, holder, key in _paths_of(there):
        said = holder[key]
        if isinstance(said, str) and os.path.isabs(said) and os.path.exists(said):
            one = Input(Path(said), f"{INPUTS}/{where}/{Path(said).name}")
            found.append(one)
            holder[key] = f"{folder}/{one.there}"
    there["output_dir"] = folder
    there["dataset_prepared_path"] = None
    return there, found


def expected_there(config: Mapping[str, Any]) -> list[str]:
    """Whole paths of the config that are not here: the machine must have them."""
    said = [holder[key] for _, holder, key in _paths_of(dict(config))]
    return [path for path in said if isinstance(path, str) and os.path.isabs(path) and not os.path.exists(path)]


def _paths_of(config: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Every place of a config that may name a local path: a name for it, the mapping or list, the key."""
    for key in ("base_model", "tokenizer_config"):
        if config.get(key) is not None:
            yield key, config, key
    for key in ("datasets", "test_datasets"):
        for number, dataset in enumerate(config.get(key) or []):
            yield f"{key}-{number}", dataset, "path"
            files = dataset.get("data_files")
            if isinstance(files, str):
                yield f"{key}-{number}-files", dataset, "data_files"
            for place in range(len(files) if isinstance(files, list) else 0):
                yield f"{key}-{number}-files-{place}", files, place


def shipped(inputs: list[Input]) -> list[Shipped]:
    """Every file of them, measured and hashed. BadInput for one that cannot be read."""
    found = [pair for one in inputs for pair in _files_of(one)]
    return [_hashed(local, there) for local, there in found]


def _hashed(local: Path, there: str) -> Shipped:
    try:
        return Shipped(local, there, local.stat().st_size, sha256_of(local))
    except OSError as error:
        raise BadInput(f"a file of the run cannot be read: {error.strerror}", file=str(local)) from None


def _files_of(one: Input) -> Iterator[tuple[Path, str]]:
    if one.local.is_file():
        yield one.local, one.there
        return
    for path in sorted(one.local.rglob("*")):
        relative = path.relative_to(one.local)
        if path.is_file() and not _stays_home(relative):
            yield path, f"{one.there}/{relative}"


def _stays_home(path: Path) -> bool:
    """Secrets by convention, and git's own files."""
    return path.name.startswith(".env") or ".git" in path.parts


def tracked_files(folder: Path) -> list[Input]:
    """The files under `folder` that git tracks, as they are now. BadInput where there is no repository."""
    command = ["git", "-C", str(folder), "ls-files", "-z"]
    try:
        told = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        words = getattr(error, "stderr", b"") or str(error).encode()
        raise BadInput(
            f"git does not list the project's files: {words.decode(errors='replace').strip()}", file=str(folder),
            key="launchers.ssh.project", fix="launch from a folder of a git repository, or leave project out",
        ) from None  # fmt: skip
    names = sorted({os.fsdecode(name) for name in told.split(b"\0") if name})
    kept = [name for name in names if not _stays_home(Path(name)) and (folder / name).is_file()]
    return [Input(folder / name, f"{PROJECT}/{name}") for name in kept]
