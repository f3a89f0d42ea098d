"""Keeps to Lambda's limits, for all processes of this machine that use one key.

A small file under dtrain's home holds when the next request may go. Who asks takes the next slot under a lock and then
sleeps until it comes, so several wait in line and none asks too soon.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Mapping

from dtrain.paths import home

_LONGEST_LINE_SECONDS = 300.0
"""A slot further away than this was not taken by anybody: it is from before a reboot, when the clock began anew."""


class Pace:
    """`clock` is one that all processes share and that nobody sets: CLOCK_MONOTONIC on Linux."""

    def __init__(
        self, key: str, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._file = home() / "pace" / f"lambda-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        self._clock, self._sleep = clock, sleep

    def wait(self, limits: Mapping[str, float]) -> None:
        """Until a request may go that counts against all of these: seconds that must lie between two of a kind."""
        slot = self._taken(limits)
        while (left := slot - self._clock()) > 0:
            self._sleep(left)

    def _taken(self, limits: Mapping[str, float]) -> float:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a+", encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            stream.seek(0)
            free, now = _read(stream.read()), self._clock()
            taken = [at for kind in limits if (at := free.get(kind, now)) <= now + _LONGEST_LINE_SECONDS]
            slot = max([now, *taken])
            stream.seek(0)
            stream.truncate()
            stream.write(json.dumps(free | {kind: slot + seconds for kind, seconds in limits.items()}))
            stream.flush()
        return slot


def _read(text: str) -> dict[str, float]:
    """A file that was cut by a full disk or a kill holds no slots."""
    try:
        told = json.loads(text or "{}")
    except ValueError:
        return {}
    return {str(kind): float(at) for kind, at in told.items()} if isinstance(told, dict) else {}
