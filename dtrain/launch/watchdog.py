"""A rank that gets no further ends the run: with the stacks of all ranks in their logs, and the slowest named."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence

from dtrain import heartbeat
from dtrain.heartbeat import Beat
from dtrain.launch.process import look, send
from dtrain.launch.ranks import Rank
from dtrain.paths import RunPaths
from dtrain.units import duration

LOOK_EVERY_SECONDS = 0.5
STACKS_SECONDS = 1.0
"""Given to the ranks to write their stacks."""


class Watchdog:
    """Looks at the heartbeats of this machine's ranks now and then."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._looked = 0.0
        self._born = time.monotonic()

    def hung(self, ranks: Sequence[Rank]) -> Mapping[int, Beat]:
        """The last beats of all ranks when one of them is overdue; empty while all is well."""
        if time.monotonic() - self._looked < LOOK_EVERY_SECONDS:
            return {}
        self._looked = time.monotonic()
        found = ((rank.number, heartbeat.read(self._paths.heartbeat(rank.number))) for rank in ranks)
        beats = {number: beat for number, beat in found if beat is not None and self._is_of_this_life(beat)}
        return beats if any(beat.overdue for beat in beats.values()) else {}

    def _is_of_this_life(self, beat: Beat) -> bool:
        """And of this boot of the machine."""
        return self._born <= beat.when <= time.monotonic()


def dump_stacks(ranks: Sequence[Rank]) -> list[int]:
    """Have every rank write the stacks of its threads into its log. The ranks that somebody had stopped (SIGSTOP)."""
    frozen = [rank for rank in ranks if (now := look(rank.process.pid)) is not None and now.state == "T"]
    send([rank.process for rank in ranks], signal.SIGUSR2)
    send([rank.process for rank in frozen], signal.SIGCONT)
    time.sleep(STACKS_SECONDS)
    return [rank.number for rank in frozen]


def slowest(beats: Mapping[int, Beat]) -> int:
    """The rank that came least far: the others wait for it."""
    return min(beats, key=lambda number: (beats[number].count, beats[number].when))


def verdict(beats: Mapping[int, Beat], frozen: Sequence[int]) -> str:
    """One line for people."""
    rank = frozen[0] if frozen else slowest(beats)
    beat = beats.get(rank) or beats[slowest(beats)]
    others = sorted({other.place for number, other in beats.items() if number != rank})
    words = f"rank {rank} hangs: for {duration(beat.age_seconds)} in {beat.place} of step {beat.step + 1}"
    stopped = " (its process is stopped, state T)" if rank in frozen else ""
    waiting = f"; the other ranks are in {', '.join(others)}" if others else ""
    return f"{words}{stopped}{waiting}; the stacks of all ranks are in logs/rank-N.log"
