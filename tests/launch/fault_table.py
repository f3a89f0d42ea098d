"""Every fault at every call of a client, in one table: what it is told, what a later client finds, and the promise.

The promise is the same for each row: no run is lost, none is doubled, and after a stop no process of it is left on any
machine. `python -m tests.launch.fault_table > docs/faults.md` writes the table down; tests run every row of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

from dtrain.errors import BadInput, DtrainError, LauncherRefused
from dtrain.launch.api import Handle, Job, Launcher
from tests.waiting import wait_until

Fault = Literal[
    "client killed before", "client killed after", "answer lost", "no answer", "refused", "full disk",
    "twice at once", "of a finished run", "twice",
]  # fmt: skip
Told = Literal["goes on", "killed", "refused", "not known"]
"""How the first client ends. `refused`: nothing was started, and it says so. `not known`: it says that, too."""
PLACES = {
    "local": "This machine",
    "slurm": "SLURM, on a login node",
    "slurm login": "SLURM, from elsewhere over SSH to a login node",
    "ssh": "Machines over SSH",
}


@dataclass(frozen=True)
class Case:
    """One row."""

    place: str
    during: Literal["submit", "cancel", "status", "fetch"]
    call: str
    fault: Fault
    told: Told
    finds: str
    """The run's state for a later client, before anything is tried again."""

    def __str__(self) -> str:
        return f"{self.place}: {self.call} {self.fault}".replace(" ", "-")


def _rows(place: str, during: Any, call: str, *rows: tuple[Fault, Told, str]) -> list[Case]:
    return [Case(place, during, call, fault, told, finds) for fault, told, finds in rows]


CASES: list[Case] = [
    # a client of this machine
    *_rows("local", "submit", "spawn", ("client killed before", "killed", "lost"),
           ("client killed after", "killed", "running"), ("refused", "refused", "lost")),
    *_rows("local", "submit", "write", ("full disk", "refused", "lost")),
    *_rows("local", "submit", "submit", ("twice at once", "goes on", "running")),
    *_rows("local", "cancel", "signal", ("client killed before", "killed", "running"),
           ("client killed after", "killed", "interrupted")),
    *_rows("local", "cancel", "cancel", ("of a finished run", "goes on", "done"), ("twice", "goes on", "interrupted")),
    # SLURM
    *_rows("slurm", "submit", "squeue", ("client killed before", "killed", "lost"), ("no answer", "refused", "lost"),
           ("refused", "refused", "lost")),
    *_rows("slurm", "submit", "sbatch", ("client killed before", "killed", "lost"),
           ("client killed after", "killed", "pending"), ("answer lost", "goes on", "pending"),
           ("no answer", "refused", "lost"), ("refused", "refused", "lost")),
    *_rows("slurm", "submit", "write", ("full disk", "refused", "lost")),
    *_rows("slurm", "submit", "submit", ("twice at once", "goes on", "pending")),
    *_rows("slurm", "status", "squeue", ("no answer", "goes on", "pending"), ("refused", "goes on", "pending")),
    *_rows("slurm", "status", "sacct", ("no answer", "goes on", "lost"), ("refused", "goes on", "lost")),
    *_rows("slurm", "status", "scontrol requeue", ("refused", "goes on", "interrupted")),
    *_rows("slurm", "cancel", "squeue", ("no answer", "refused", "pending")),
    *_rows("slurm", "cancel", "scancel", ("client killed before", "killed", "pending"),
           ("client killed after", "killed", "interrupted"), ("answer lost", "goes on", "interrupted"),
           ("no answer", "goes on", "interrupted"), ("refused", "goes on", "interrupted")),
    *_rows("slurm", "cancel", "cancel", ("of a finished run", "goes on", "done"), ("twice", "goes on", "interrupted")),
    # SLURM behind SSH
    *_rows("slurm login", "submit", "place", ("client killed after", "killed", "lost"),
           ("answer lost", "refused", "lost")),
    *_rows("slurm login", "submit", "write", ("full disk", "refused", "lost")),
    *_rows("slurm login", "submit", "relay submit", ("client killed before", "killed", "lost"),
           ("client killed after", "killed", "pending"), ("answer lost", "not known", "pending"),
           ("refused", "not known", "lost")),
    *_rows("slurm login", "status", "relay status", ("answer lost", "goes on", "pending")),
    *_rows("slurm login", "cancel", "relay cancel", ("answer lost", "not known", "interrupted"),
           ("refused", "not known", "pending")),
    *_rows("slurm login", "fetch", "results", ("refused", "not known", "done")),
    # machines over SSH
    *_rows("ssh", "submit", "hello", ("refused", "refused", "lost")),
    *_rows("ssh", "submit", "files", ("client killed before", "killed", "lost"), ("answer lost", "refused", "lost")),
    *_rows("ssh", "submit", "place", ("client killed after", "killed", "lost"), ("answer lost", "refused", "lost")),
    *_rows("ssh", "submit", "write", ("full disk", "refused", "lost")),
    *_rows("ssh", "submit", "gate", ("client killed before", "killed", "lost"), ("refused", "refused", "lost")),
    *_rows("ssh", "submit", "meeting", ("answer lost", "refused", "lost")),
    *_rows("ssh", "submit", "link", ("refused", "refused", "lost")),
    *_rows("ssh", "submit", "reach", ("refused", "refused", "lost")),
    *_rows("ssh", "submit", "start", ("client killed before", "killed", "lost"),
           ("client killed after", "killed", "running"), ("answer lost", "not known", "running"),
           ("refused", "not known", "lost")),
    *_rows("ssh", "submit", "submit", ("twice at once", "goes on", "running")),
    *_rows("ssh", "status", "look", ("answer lost", "goes on", "running")),
    *_rows("ssh", "cancel", "stop", ("client killed after", "killed", "interrupted"),
           ("answer lost", "not known", "interrupted"), ("refused", "not known", "running")),
    *_rows("ssh", "cancel", "cancel", ("of a finished run", "goes on", "done"), ("twice", "goes on", "interrupted")),
    *_rows("ssh", "fetch", "results", ("answer lost", "not known", "done")),
    *_rows("ssh", "fetch", "sftp", ("refused", "not known", "done")),
]  # fmt: skip
WITHOUT_A_FAULT: tuple[Fault, ...] = ("twice at once", "of a finished run", "twice", "full disk")
"""What goes wrong is what is asked, or the disk, not one call."""


def cases_of(*places: str) -> list[Case]:
    return [case for case in CASES if case.place in places]


# --- a fault ------------------------------------------------------------------------------------------------------


class Injected:
    """One fault at one call. What was asked is written to `log`, where a client that is killed leaves it too."""

    def __init__(self, call: str, fault: Fault, log: Path, strikes: int = 1) -> None:
        """`strikes`: how often in a row; a call that the product tries again must fail each time."""
        self.call = call
        self.fault = fault
        self.log = log
        self.left = strikes

    def at(self, call: str, make: Callable[[], Any], lost: Callable[[], Any], refused: Callable[[], Any]) -> Any:
        """Make a call, or what becomes of it; `lost` and `refused` are how its place tells such a failure."""
        with self.log.open("a") as stream:
            stream.write(call + "\n")
        if call != self.call or self.left == 0:
            return make()
        self.left -= 1
        if self.fault in ("client killed after", "answer lost"):
            make()
        if self.fault.startswith("client killed"):
            os._exit(137)
        return refused() if self.fault == "refused" else lost()

    @property
    def reached(self) -> bool:
        return self.call in self.asked

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


class Place(Protocol):
    """Where runs are started in these tests."""

    def job(self, steps: int, case: Case) -> Job: ...

    def again(self, job: Job) -> Job:
        """What a later client submits; the same run."""

    def client(self) -> Launcher:
        """A new one that knows nothing."""

    def arm(self, fault: Injected, patch: pytest.MonkeyPatch) -> Launcher:
        """A client with whose calls something goes wrong."""

    def full_disk(self, job: Job) -> Any:
        """A context: the same job on a disk that takes nothing, and nothing is left there."""

    def wait_training(self, launcher: Launcher, handle: Handle) -> None: ...

    def lives(self, job: Job) -> int:
        """How many times it runs or waits to run."""

    def left(self, job: Job) -> list[Any]:
        """Processes of it on any machine, and its jobs in a queue."""


# --- the rows ------------------------------------------------------------------------------------------------------

LONG, SHORT = 100_000, 5


def keep_the_promise(case: Case, place: Place, patch: pytest.MonkeyPatch, log: Path) -> None:
    """Run one row."""
    {"submit": submitting, "cancel": cancelling, "status": looking, "fetch": fetching}[case.during](
        case, place, patch, log
    )


def submitting(case: Case, place: Place, patch: pytest.MonkeyPatch, log: Path) -> None:
    job = place.job(LONG, case)
    if case.fault == "twice at once":
        with ThreadPoolExecutor(2) as pool:
            handles = list(pool.map(lambda _: submitted(place.client(), job), range(2)))
        assert handles[0] == handles[1]
    elif case.fault == "full disk":
        with place.full_disk(job) as on_it, pytest.raises(LauncherRefused, match="No space left"):
            submitted(place.client(), on_it)
    else:
        first_client(case, place, patch, log, lambda launcher: submitted(launcher, job))
    later = place.client()
    wait_until(lambda: later.status(empty_handle(place, job)).state == case.finds)  # a supervisor may be just coming up
    # the second of two at once sees the first and leaves: a moment later there is one
    wait_until(lambda: place.lives(job) == (case.finds in ("running", "pending")))
    handle = submitted(later, place.again(job))
    wait_until(lambda: place.lives(job) == 1)
    the_end(place, job, later, handle)


def cancelling(case: Case, place: Place, patch: pytest.MonkeyPatch, log: Path) -> None:
    finished = case.fault == "of a finished run"
    job = place.job(SHORT if finished else LONG, case)
    first = place.client()
    handle = submitted(first, job)
    wait_until(lambda: first.status(handle).state == "done") if finished else place.wait_training(first, handle)
    if case.fault in WITHOUT_A_FAULT:
        for _ in range(2):
            place.client().cancel(handle)
    else:
        first_client(case, place, patch, log, lambda launcher: launcher.cancel(handle))
    later = place.client()
    wait_until(lambda: later.status(handle).state == case.finds)
    the_end(place, job, later, handle, case.finds if case.finds == "done" else "interrupted")


def looking(case: Case, place: Place, patch: pytest.MonkeyPatch, log: Path) -> None:
    """A client that asks in vain ends nothing, and a later one sees the run as it is."""
    job = place.job(LONG, case)
    first = place.client()
    handle = submitted(first, job)
    place.wait_training(first, handle)
    first_client(case, place, patch, log, lambda launcher: launcher.status(handle))
    later = place.client()
    assert later.status(handle).state == case.finds
    the_end(place, job, later, handle)


def fetching(case: Case, place: Place, patch: pytest.MonkeyPatch, log: Path) -> None:
    """What was cut comes with the next fetch."""
    job = place.job(SHORT, case)
    handle = submitted(place.client(), job)
    first = place.client()
    wait_until(lambda: first.status(handle).state == "done")
    (Path(handle.data["machines"][0]["base"]) / "runs" / job.run_id / "model.safetensors").write_bytes(b"weights")
    first_client(case, place, patch, log, lambda launcher: launcher.fetch(handle, "all", print))
    later: Any = place.client()
    files, _ = later.fetch(handle, "all", print)
    assert later.fetch(handle, "all", print) == (files, 0)
    assert (job.folder / "model.safetensors").read_bytes() == b"weights"
    the_end(place, job, later, handle, case.finds)


def first_client(
    case: Case, place: Place, patch: pytest.MonkeyPatch, log: Path, act: Callable[[Any], object]
) -> None:  # fmt: skip
    """The client whom the fault meets: it reaches the call, and ends as the row says."""
    strikes = 2 if place.client().name == "ssh" or case.place == "slurm login" else 1
    fault = Injected(case.call, case.fault, log, strikes)
    with patch.context() as armed:
        if case.told == "killed":
            assert in_a_child(lambda: act(place.arm(fault, armed))) == 137
        else:
            assert how_it_ends(lambda: act(place.arm(fault, armed))) == case.told
    assert fault.reached, fault.asked


def in_a_child(act: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def how_it_ends(act: Callable[[], object]) -> Told:
    """By what `dtrain launch` makes of it: a refusal takes the run back, anything else keeps its intent."""
    try:
        act()
    except (LauncherRefused, BadInput):
        return "refused"
    except DtrainError:
        return "not known"
    return "goes on"


def submitted(launcher: Launcher, job: Job) -> Handle:
    return launcher.submit(job, launcher.render(job))


def empty_handle(place: Place, job: Job) -> Handle:
    """What is known of a run whose client died before it had a handle."""
    return Handle(place.client().name, job.run_id, str(job.folder))


def the_end(place: Place, job: Job, launcher: Launcher, handle: Handle, state: str = "interrupted") -> None:
    launcher.cancel(handle)
    assert launcher.status(handle).state == state
    assert place.left(job) == []


# --- the page ------------------------------------------------------------------------------------------------------

PAGE = """\
# What can go wrong, and what is left of it

A client (the `dtrain` command) may die or lose its line at any call. Each row below is a test: the fault is put at
that call, the test checks that the call was reached, and then a second client that knows only the run's id looks,
tries again, and stops the run. For every row: **no run is lost, none runs twice, and after the stop no process of it
is left on any machine, nor a job in the queue.**

- *first client*: `refused` means that nothing was started and the launch is taken back; `not known` means that it says
  so and keeps what it knows; `goes on` means that the fault costs nothing.
- *a later client finds*: the state of the run before anything is tried again. `lost` is then a run that was never
  started.

This page is written by `python -m tests.launch.fault_table`.
"""
HEAD = "| while | at | fault | first client | a later client finds |\n|---|---|---|---|---|\n"


def page() -> str:
    parts = [PAGE]
    for name, cases in groupby(CASES, lambda case: case.place):
        parts.append(f"\n## {PLACES[name]}\n\n{HEAD}")
        parts += [f"| {one.during} | `{one.call}` | {one.fault} | {one.told} | {one.finds} |\n" for one in cases]
    return "".join(parts)


if __name__ == "__main__":
    print(page(), end="")
