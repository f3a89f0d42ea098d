"""Host memory that ran out: ranks that the kernel killed for it, told by its counters, or that C++ ended.

The kernel counts the processes that it killed for memory: `oom_kill` in a cgroup's memory.events (version 2, with those
below it) or memory.oom_control (version 1), and of the whole machine in /proc/vmstat (cgroup-v2.rst; proc(5)).
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from dtrain.errors import RunFailed
from dtrain.files import write_json
from dtrain.launch.ending import read_or_none, step_reached
from dtrain.launch.ranks import SEEN_LATE_SECONDS, Rank
from dtrain.paths import RunPaths
from dtrain.units import gib, memory

LOOK_EVERY_SECONDS = 1.0
CGROUPS = Path("/sys/fs/cgroup")
VMSTAT = Path("/proc/vmstat")
LAST_WORDS_BYTES = 4096


def kill_counter(cgroup: str) -> Path:
    """The file that counts for this process; `cgroup`: /proc/self/cgroup. The machine's where no cgroup's is there."""
    return next((file for file in _counters_of(cgroup) if file.is_file()), VMSTAT)


def _counters_of(cgroup: str) -> Iterator[Path]:
    """From the process's own cgroup up: in a container the outer part of its path is not to be seen."""
    for line in cgroup.splitlines():
        _, controllers, path = line.split(":", 2)
        roots = [CGROUPS, CGROUPS / "unified"] if not controllers else []
        if "memory" in controllers.split(","):
            roots = [CGROUPS / "memory"]
        name = "memory.oom_control" if controllers else "memory.events"
        own = PurePosixPath(path.strip("/"))
        yield from (root / folder / name for root in roots for folder in (own, *own.parents))


def kills(counter: Path) -> int:
    """0 where it cannot be read."""
    try:
        found = re.search(r"^oom_kill (\d+)$", counter.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def resident_gib(pid: int) -> float | None:
    """Of a process that lives (proc(5), VmRSS)."""
    with suppress(OSError):
        found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return gib(int(found[1]) * 1024) if found else None
    return None


class HostMemory:
    """What the ranks of this machine hold, looked at now and then."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._counter = kill_counter(Path("/proc/self/cgroup").read_text())
        self._killed = self._killed_lately = kills(self._counter)
        self._looked = 0.0
        self._held_gib: dict[int, float] = {}

    def look(self, ranks: Sequence[Rank]) -> None:
        """What is told of an end is compared with the look before the last one: a kill may be counted a moment before
        its process is seen dead."""
        if time.monotonic() - self._looked < LOOK_EVERY_SECONDS:
            return
        self._looked = time.monotonic()
        self._killed, self._killed_lately = self._killed_lately, kills(self._counter)
        held = {rank.number: resident_gib(rank.process.pid) for rank in ranks}
        self._held_gib |= {number: size for number, size in held.items() if size is not None}

    def explain(self, ended: Sequence[Rank]) -> None:
        """Where memory is why a rank ended without a word: leave its last words for it, as it would have."""
        for rank in ended:
            why = None if self._paths.rank_error(rank.number).exists() else self._why(rank)
            if why is not None:
                with suppress(OSError):
                    write_json(self._paths.rank_error(rank.number), self._told(rank, why))

    @property
    def a_kill(self) -> str | None:
        """What the kernel's counter tells of the last two seconds, in words."""
        if kills(self._counter) <= self._killed:
            return None
        return f"the kernel killed it, as {self._counter} counts"

    def _why(self, rank: Rank) -> str | None:
        if rank.exit_code in (None, -signal.SIGKILL):  # None: torchrun took it
            return self.a_kill
        if rank.exit_code == -signal.SIGABRT and b"bad_alloc" in _last_words(self._paths, rank.number):
            return "C++ could get no more (std::bad_alloc)"
        return None

    def _told(self, rank: Rank, why: str) -> dict[str, Any]:
        from dtrain.planner.replan import Shortage  # the planner, only for a run that failed

        held, step = sum(self._held_gib.values()), step_reached(self._paths)
        plan = read_or_none(self._paths.plan) or {}
        planned = plan.get("host_memory_gib")
        beside = f"planned {memory(planned)} on this machine, " if planned is not None else ""
        words = (
            f"out of host memory, {why}: {beside}its {len(self._held_gib)} "
            f"rank{'s' * (len(self._held_gib) != 1)} held {memory(held)} when last looked at, this one "
            f"{memory(self._held_gib.get(rank.number, 0.0))}"
        )
        shortage = Shortage(held, 0.0, "training", step, "host")
        when = (rank.ended or time.time()) - SEEN_LATE_SECONDS
        return {**RunFailed(words).as_json(), "time": when, "shortage": shortage.as_json()}


def _last_words(paths: RunPaths, rank: int) -> bytes:
    try:
        with paths.rank_log(rank).open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - LAST_WORDS_BYTES))
            return stream.read()
    except OSError:
        return b""
