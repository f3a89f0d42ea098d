"""A rank's sign of life: a few bytes in a file that the rank has mapped, so that a beat costs no system call.

It lies in the run's folder, but only the supervisor of the same machine reads it: its clock is the monotonic one.
"""

from __future__ import annotations

import mmap
import struct
import time
from dataclasses import dataclass
from pathlib import Path

_FORM = struct.Struct("<QddQ88s")
"""Beats so far, when the last was (CLOCK_MONOTONIC, s), the seconds until it counts as hung, the step, the place."""


@dataclass(frozen=True)
class Beat:
    count: int
    when: float
    """Seconds on this machine's monotonic clock."""
    limit_seconds: float
    """How long after it the rank counts as hung; 0: as long as it likes."""
    step: int
    place: str

    @property
    def overdue(self) -> bool:
        return self.limit_seconds > 0 and self.age_seconds > self.limit_seconds

    @property
    def age_seconds(self) -> float:
        return time.monotonic() - self.when


class Heart:
    """The rank's side."""

    def __init__(self, path: Path, limit_seconds: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(_FORM.size))
        with path.open("r+b") as stream:
            self._memory = mmap.mmap(stream.fileno(), _FORM.size)
        self._limit_seconds = limit_seconds
        self._count = 0
        self.step = 0
        self.place = "loading"

    def beat(self, place: str, step: int | None = None, watched: bool = True) -> None:
        """This rank got on to `place` of a step (None: the same one). Not `watched`: what comes may take any time."""
        self._count += 1
        self.step = self.step if step is None else step
        self.place = place
        limit = self._limit_seconds if watched else 0.0
        _FORM.pack_into(self._memory, 0, self._count, time.monotonic(), limit, self.step, place.encode()[:88])


def read(path: Path) -> Beat | None:
    """The last beat; None before the first."""
    try:
        count, when, limit, step, place = _FORM.unpack(path.read_bytes())
    except (OSError, struct.error):
        return None
    return Beat(count, when, limit, step, place.rstrip(b"\0").decode(errors="replace")) if count else None
