"""Results come home: every file goes on where the last try ended, and counts only when its checksum is right."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dtrain.errors import BadInput, RunFailed
from dtrain.files import sync_file
from dtrain.launch.digest import sha256_of
from dtrain.paths import RunPaths

PART = ".fetch.part"
CHUNK_BYTES = 1 << 20
TRIES = 2
"""A file that arrives damaged is fetched once more, from its first byte."""


class Source(Protocol):
    """Where results lie."""

    def read(self, name: str, offset: int) -> Iterator[bytes]: ...


@dataclass(frozen=True)
class Fetched:
    files: int
    """In all, those that were here before counted."""
    brought_bytes: int
    """Over the line, this time."""

    def __add__(self, other: Fetched) -> Fetched:
        return Fetched(self.files + other.files, self.brought_bytes + other.brought_bytes)


def bring_home(
    source: Source, files: Mapping[str, Mapping[str, Any]], into: Path, say: Callable[[str], None]
) -> Fetched:
    """Every file of `files` (name → bytes, sha256) below `into`, a run's output folder.

    RunFailed for one that cannot be had whole.
    """
    brought = 0
    with _alone(into):
        for name, about in sorted(files.items(), key=lambda item: (item[1]["bytes"], item[0])):
            target = _inside(into, name)
            if _is_whole(target, about):
                continue
            brought += _bring(source, name, about, target)
            say(f"{name}  {about['bytes']:,} bytes")
    return Fetched(len(files), brought)


def _bring(source: Source, name: str, about: Mapping[str, Any], target: Path) -> int:
    part = target.with_name(f".{target.name}{PART}")
    target.parent.mkdir(parents=True, exist_ok=True)
    brought = 0
    for _ in range(TRIES):
        begun = part.stat().st_size if part.exists() and part.stat().st_size <= about["bytes"] else 0
        brought += _receive(source, name, part, begun)
        if _is_whole(part, about):
            sync_file(part)
            part.replace(target)
            return brought
        part.unlink(missing_ok=True)
    raise RunFailed(
        f"{name} arrives damaged or changes while it is fetched", file=str(target),
        fix="fetch again once the run has ended",
    )  # fmt: skip


def _receive(source: Source, name: str, part: Path, begun: int) -> int:
    brought = 0
    try:
        with part.open("ab" if begun else "wb") as stream:
            for chunk in source.read(name, begun):
                stream.write(chunk)
                brought += len(chunk)
    except OSError as error:
        raise BadInput(
            f"what is fetched cannot be written: {error.strerror}", file=str(part),
            fix="free space there; what came is kept",
        ) from None  # fmt: skip
    return brought


def _is_whole(path: Path, about: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == about["bytes"] and sha256_of(path) == about["sha256"]


def _inside(folder: Path, name: str) -> Path:
    """A machine does not say where outside the run's folder something is written."""
    target = folder / name
    if os.path.isabs(name) or ".." in Path(name).parts or not target.parent.resolve().is_relative_to(folder.resolve()):
        raise RunFailed("a file of the run has a name that leads out of its folder", value=name)
    return target


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    run = RunPaths(folder).run
    run.mkdir(parents=True, exist_ok=True)
    handle = os.open(run / "fetch.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise BadInput("another fetch of this run is under way", file=str(folder)) from None
    finally:
        os.close(handle)
