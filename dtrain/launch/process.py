"""Processes on this machine through /proc: who is alive, who descends from whom, and how to end all of them.

Linux only, and only the standard library: a supervisor must work where nothing else is installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
RUN_MARK = "DTRAIN_RUN_ID"
"""In the environment of every process of a run, so that none is missed when the run is ended."""

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Process:
    """One line of /proc/PID/stat, as far as it is needed."""

    pid: int
    state: str
    parent: int
    start_ticks: int
    """Clock ticks from boot to its start: with the pid it names a process, also after the pid was used again."""
    wait_status: int
    """As `os.waitpid` gives it; meaningful once the process is a zombie."""

    @property
    def running(self) -> bool:
        return self.state not in "ZX"

    @property
    def exit_code(self) -> int:
        """The exit code, or minus the signal that killed it."""
        return os.waitstatus_to_exitcode(self.wait_status)


def look(pid: int) -> Process | None:
    """The process, or None when there is none (any more)."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold spaces and brackets
    return Process(pid, fields[0], int(fields[1]), int(fields[19]), int(fields[49]))


def is_alive(pid: int, start_ticks: int) -> bool:
    """Whether that very process still runs; a zombie does not, and a recycled pid is another process."""
    found = look(pid)
    return found is not None and found.running and found.start_ticks == start_ticks


def every_process() -> list[Process]:
    pids = (int(entry) for entry in os.listdir(PROC) if entry.isdigit())
    return [found for found in map(look, pids) if found is not None]


def children(pid: int) -> list[Process]:
    return [process for process in every_process() if process.parent == pid]


def descendants(pid: int) -> list[Process]:
    """Children, their children and so on, zombies too."""
    by_parent: dict[int, list[Process]] = {}
    for process in every_process():
        by_parent.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    queue = [pid]
    while queue:
        below = by_parent.get(queue.pop(), [])
        found += below
        queue += [process.pid for process in below]
    return found


def environment(pid: int) -> dict[str, str]:
    """What the process was started with; empty for a zombie or another user's process."""
    try:
        raw = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in raw.split(b"\0") if b"=" in item)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def processes_of_run(run_id: str) -> list[Process]:
    """Every live process that was started for this run, wherever it went since."""
    return [
        process
        for process in every_process()
        if process.running and process.pid != os.getpid() and environment(process.pid).get(RUN_MARK) == run_id
    ]


def send(processes: Iterable[Process], signal_number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal_number)


def end_run_processes(run_id: str, *, below: int | None = None, patience_seconds: float = 10.0) -> list[Process]:
    """Kill what belongs to the run (and what descends from `below`) until nothing is left; returns who survived.

    Loops, because a process may fork between the look and the kill. A process in an uninterruptible
    sleep (a dead disk) survives; the caller says so.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        left = {process.pid: process for process in processes_of_run(run_id)}
        if below is not None:
            left |= {process.pid: process for process in descendants(below) if process.running}
        if not left or time.monotonic() > deadline:
            return list(left.values())
        send(left.values(), signal.SIGKILL)
        time.sleep(0.02)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


def adopt_orphans() -> None:
    """Descendants whose parent dies become children of this process instead of init's."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def boot_id() -> str:
    """Changes with every boot of the machine."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()
