"""metrics.jsonl: one object per logged step, always written, by rank 0."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dtrain.files import write_whole


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add one object. A line is one write, so a reader never sees half of one."""
    _append_whole(path, as_text(line).encode())


def as_text(line: Mapping[str, Any]) -> str:
    """What is known of it as one line, with `time` (seconds since 1970)."""
    known = {name: value for name, value in line.items() if value is not None}
    return json.dumps(known | {"time": round(time.time(), 3)}) + "\n"


class Journal:
    """The writing side of a run: what a full disk does not take is kept, and written once there is space again."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path = path
        self._say = say
        self._waiting: list[str] = []

    def add(self, line: Mapping[str, Any]) -> None:
        was_waiting = len(self._waiting)
        self._waiting.append(as_text(line))
        try:
            _append_whole(self._path, "".join(self._waiting).encode())
        except OSError as error:
            if not was_waiting:
                self._say(f"WARNING: {self._path.name} cannot be written ({error}): lines wait for space")
            return
        self._waiting.clear()
        if was_waiting:
            self._say(f"{self._path.name}: {was_waiting} lines that waited for space are written")


def _append_whole(path: Path, data: bytes) -> None:
    """All of it or nothing: a disk that fills in the middle leaves no half of a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        try:
            written = os.write(handle, data)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line cut in half by a crash is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def forget_after(path: Path, step: int) -> None:
    """Drop what was logged beyond `step`: a resumed run does those steps again."""
    kept = [line for line in read(path) if line.get("step", 0) <= step]
    if path.exists():
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
