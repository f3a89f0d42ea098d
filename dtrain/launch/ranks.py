"""The ranks of one machine as processes: which pid is which rank, and how each of them ended."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from dtrain.files import read_json
from dtrain.launch.ending import FAILED, INTERRUPTED
from dtrain.launch.process import Process, children, environment, look
from dtrain.paths import RunPaths

SEEN_LATE_SECONDS = 0.1
"""A death is seen up to this long after it happened; other ranks' complaints about it may be older than the sight."""


@dataclass
class Rank:
    number: int
    process: Process
    ended: float | None = None
    """When it was seen dead, seconds since 1970."""
    exit_code: int | None = None
    """None while it lives, and when torchrun took the code before it was read."""

    def look_again(self) -> None:
        now = look(self.process.pid)
        gone = now is None or now.start_ticks != self.process.start_ticks
        if self.ended is None and (gone or (now is not None and not now.running)):
            self.ended = time.time()
            self.exit_code = None if gone or now is None else now.exit_code


def first_number(torchrun: Sequence[str]) -> int | None:
    """The lowest number of the ranks that this command starts: 0 on one machine; among several, torchrun decides."""
    several = "--nnodes" in torchrun and torchrun[torchrun.index("--nnodes") + 1] != "1"
    return None if several else 0


@dataclass
class Ranks:
    """Children of one torchrun."""

    expected: int
    first: int | None = None
    """The lowest number on this machine; None until a rank that lives tells it."""
    seen: dict[int, Rank] = field(default_factory=dict)

    def update(self, torchrun_pid: int) -> None:
        if len(self.seen) < self.expected:
            self._find(torchrun_pid)
        for rank in self.seen.values():
            if rank.ended is None:
                rank.look_again()

    def _find(self, torchrun_pid: int) -> None:
        known = {rank.process.pid for rank in self.seen.values()}
        started = sorted(children(torchrun_pid), key=lambda one: (one.start_ticks, one.pid))
        for process in started:
            told = environment(process.pid) if process.pid not in known else {}
            if "RANK" in told:
                self.first = int(told["RANK"]) - int(told.get("LOCAL_RANK", told["RANK"]))
                self._see(int(told["RANK"]), process)
        if len(started) == self.expected and self.first is not None:
            self._find_dead(started, self.first)

    def _find_dead(self, started: list[Process], first: int) -> None:
        """A rank that died before it was seen tells nothing any more: torchrun starts them in the order of their
        numbers."""
        for number, process in enumerate(started, first):
            if number not in self.seen and not process.running:
                self._see(number, process)

    def _see(self, number: int, process: Process) -> None:
        self.seen[number] = Rank(number, process)

    @property
    def alive(self) -> list[Rank]:
        return [rank for rank in self.seen.values() if rank.ended is None]

    @property
    def all_ended(self) -> bool:
        return len(self.seen) == self.expected and not self.alive

    @property
    def unread(self) -> list[Rank]:
        """Ranks that ended and whose exit code torchrun took first: one death in some hundreds."""
        return [rank for rank in self.seen.values() if rank.ended is not None and rank.exit_code is None]

    def failed(self, excused: frozenset[int]) -> list[Rank]:
        """Ranks that ended with another code than 0 or an excused one."""
        fine = excused | {0, None}
        return [rank for rank in self.seen.values() if rank.ended is not None and rank.exit_code not in fine]


@dataclass(frozen=True)
class Failure:
    """Why a rank ended, for exit.json."""

    rank: int
    code: int
    reason: str
    when: float


def failure_of(rank: Rank, paths: RunPaths) -> Failure:
    """In the rank's own words where it left some, else from its exit code or signal."""
    seen = (rank.ended or time.time()) - SEEN_LATE_SECONDS
    try:
        told = read_json(paths.rank_error(rank.number))
    except (OSError, ValueError):
        return Failure(rank.number, FAILED, f"rank {rank.number} {how_it_ended(rank.exit_code)}", seen)
    code = told.get("code") or FAILED
    return Failure(rank.number, code, f"rank {rank.number}: {told.get('message')}", told.get("time") or seen)


def first_failure(failed: list[Rank], paths: RunPaths) -> Failure:
    """The one that came first: the others mostly complain that it is gone."""
    return min((failure_of(rank, paths) for rank in failed), key=lambda failure: failure.when)


def how_it_ended(exit_code: int | None) -> str:
    if exit_code is None:
        return "ended without a word"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    return f"was killed by {name}"


def was_interrupted(ranks: list[Rank]) -> bool:
    """Some rank left because it was told to, by whomever."""
    return any(rank.exit_code == INTERRUPTED for rank in ranks)
