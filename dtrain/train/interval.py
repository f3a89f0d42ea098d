"""When to save: often enough that a failure costs little, seldom enough that saving does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

GPU_HOURS_BETWEEN_FAILURES = 16_384 * 54 * 24 / 419
"""Llama 3's training: 419 unexpected interruptions of 16,384 GPUs in 54 days (arXiv:2407.21783, section 3.3.4)."""

LEAST_WRITING_TIMES = 2
"""No save begins sooner than so many times the last one's whole duration: the disk would never rest."""


def best_interval(save_seconds: float, seconds_between_failures: float) -> float:
    """Seconds of training between two saves that minimise the expected loss of time.

    J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future Generation
    Computer Systems 22 (2006), equation 37; its first term is J. W. Young's (Communications of the ACM 17, 1974).
    `save_seconds`: how long training stands still for a save. `seconds_between_failures`: the mean of all machines.
    """
    if save_seconds >= 2 * seconds_between_failures:
        return seconds_between_failures
    ratio = save_seconds / (2 * seconds_between_failures)
    young = math.sqrt(2 * save_seconds * seconds_between_failures)
    return young * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_seconds


def hours_between_failures(gpus: int) -> float:
    """Mean hours between failures of so many GPUs and what is around them, at Llama 3's rate."""
    return GPU_HOURS_BETWEEN_FAILURES / gpus


class SaveClock:
    """Says when the next save is due. The first one is due at once: its cost is measured, and a disk that cannot be
    written is found in the first minute instead of after hours."""

    def __init__(self, hours_between_failures: float, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds_between_failures = hours_between_failures * 3600
        self._now = now
        self._next = 0.0

    def due(self) -> bool:
        return self._now() >= self._next

    def saved(self, save_seconds: float, writing_seconds: float = 0.0) -> None:
        """A save cost training `save_seconds`; the one before it was `writing_seconds` on its way to the disk."""
        interval = best_interval(save_seconds, self._seconds_between_failures)
        self._next = self._now() + max(interval, LEAST_WRITING_TIMES * writing_seconds)
