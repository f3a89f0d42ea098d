"""Writing files so that they are whole or absent."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: str | bytes, durable: bool = True) -> None:
    """Write beside, fsync, rename: a reader sees the old file or the new one, never half of one.

    `durable=False` leaves out the fsync: for what is written often and may be lost with the machine.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{threading.get_native_id()}.part")
    data = content.encode() if isinstance(content, str) else content
    try:
        with beside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def write_json(path: Path, document: Any, durable: bool = True) -> None:
    write_whole(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n", durable)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    sync_file(folder)


def sync_file(path: Path) -> None:
    """Make what was written to `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
