"""A run through many lives, fast: one process loads torch and DeepSpeed and forks every rank of every life.

Each rank is the real `dtrain.train.worker`, in a real process with a real process group; what a supervisor does about a
dead rank (kill the others, start anew) is done here.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtrain import heartbeat
from dtrain.paths import RunPaths
from tests.faults.layer import Fault, Kind
from tests.train.meeting import meeting

LIFE_SECONDS = 120.0


@dataclass(frozen=True)
class Blow:
    """What happens to one life."""

    rank: int
    """Which rank; -1: all of them at once."""
    after_beats: int | None = None
    """Kill -9 once the rank has got so far."""
    file_call: int | None = None
    """Inside a save: at its so-many-th change of a file below `checkpoints`."""
    kind: Kind = "kill"

    def __str__(self) -> str:
        who = "all ranks" if self.rank < 0 else f"rank {self.rank}"
        where = f"file call {self.file_call}" if self.file_call is not None else f"beat {self.after_beats}"
        return f"{self.kind} {who} at {where}"


def preload() -> None:
    """What every rank would import, once."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    from tests.train.forked import load_libraries

    load_libraries()
    from dtrain.train import run, worker  # noqa: F401


def copy_of(finished: RunPaths, folder: Path) -> RunPaths:
    """A run that has not begun, with the config, plan and data of one that has."""
    paths = RunPaths(folder)
    paths.run.mkdir(parents=True)
    for file in (finished.config, finished.plan, finished.data):
        shutil.copy(file, paths.run)
    return paths


def live(paths: RunPaths, world: int, blow: Blow | None) -> list[int]:
    """One life of the run. Exit codes of its ranks, negative for a signal."""
    for rank in range(world):
        paths.heartbeat(rank).unlink(missing_ok=True)
    with meeting() as told:
        return _lived(paths, [_start(paths, rank, world, told, blow) for rank in range(world)], blow)


def _lived(paths: RunPaths, pids: Sequence[int], blow: Blow | None) -> list[int]:
    codes: dict[int, int] = {}
    deadline = time.monotonic() + LIFE_SECONDS
    while len(codes) < len(pids):
        if blow is not None and blow.after_beats is not None and _far_enough(paths, blow):
            _kill(pids if blow.rank < 0 else [pids[blow.rank]])
            blow = None
        for pid in pids:
            if pid not in codes and (done := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(done[1])
        if any(codes.values()) or time.monotonic() > deadline:
            _kill([pid for pid in pids if pid not in codes])
        time.sleep(0.002)
    assert time.monotonic() < deadline, "a life did not end"
    return [codes[pid] for pid in pids]


def _start(paths: RunPaths, rank: int, world: int, told: dict[str, str], blow: Blow | None) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            **told,
        }  # fmt: skip
        if blow is not None and blow.file_call is not None and blow.rank in (rank, -1):
            Fault(paths.checkpoints, blow.kind, blow.file_call).install()
        from dtrain.train import worker

        code = worker.main(paths.output)
    finally:
        os._exit(code)


def _far_enough(paths: RunPaths, blow: Blow) -> bool:
    beat = heartbeat.read(paths.heartbeat(max(blow.rank, 0)))
    return beat is not None and beat.count >= (blow.after_beats or 0)


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def random_blow(draw: random.Random, world: int, beats: int, calls: int) -> Blow:
    """Half of them at a random place of the training, half inside a random save."""
    rank = draw.randrange(-1, world)
    if draw.random() < 0.5:
        return Blow(rank, after_beats=draw.randrange(1, beats))
    return Blow(rank, file_call=draw.randrange(1, calls))


def survive(
    paths: RunPaths, world: int, blows: Sequence[Blow], check: Callable[[RunPaths], None]
) -> list[tuple[Blow, list[int]]]:
    """One life for each blow, checked after each, then undisturbed ones to the end of the run."""
    told = []
    for blow in blows:
        codes = live(paths, world, blow)
        told.append((blow, codes))
        check(paths)
        if not any(codes):
            return told  # the run came to its end before the blow fell
    codes = live(paths, world, None)
    assert not any(codes), (codes, paths.rank_log(0).read_text()[-2000:])
    return told
