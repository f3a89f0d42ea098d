"""What a run on a machine that is reached over SSH has made: which files, and their bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dtrain.launch.fetch import CHUNK_BYTES
from dtrain.launch.machine import Remote

RESULTS_SECONDS = 3600.0
"""Hashing a large checkpoint takes a while before its first byte comes."""


def results_of(remote: Remote, folder: str, checkpoints: str | None) -> Mapping[str, Any]:
    """What a machine has to bring home of a run: name → bytes, sha256."""
    told = {"folder": folder, "checkpoints": checkpoints}
    files: Mapping[str, Any] = remote.ask("results", told, RESULTS_SECONDS)["files"]
    return files


class Results:
    """The files of a run on a machine."""

    def __init__(self, remote: Remote, folder: str) -> None:
        self.remote = remote
        self.folder = folder

    def read(self, name: str, offset: int) -> Iterator[bytes]:
        with self.remote.tunnel.files() as sftp, sftp.open(f"{self.folder}/{name}", "rb") as stream:
            size = stream.stat().st_size or 0
            stream.prefetch(size)
            stream.seek(offset)
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk


def is_share(name: str) -> bool:
    """Of a machine after the first: its ranks' part of a checkpoint."""
    return name.startswith("dtrain/checkpoints/") and not name.endswith("/manifest.json")
