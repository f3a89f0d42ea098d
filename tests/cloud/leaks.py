"""The leak test: a run's keeper is killed at every provider call, before and after, and at every stage, and the client
that launches it before and after everything that it does (`client_leaks`). Then one gc.

`make soak` tries them all and writes the tables (DTRAIN_LEAK_SWEEP); the tests of a provider try some.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dtrain.cloud.collect import collect, survey
from dtrain.cloud.launcher import CloudLauncher
from dtrain.cloud.ledger import Ledger
from dtrain.cloud.progress import Progress
from dtrain.launch.api import Job
from dtrain.launch.ending import Ending, read_or_none
from dtrain.paths import RunPaths
from tests.cloud.datacenter import Datacenter
from tests.cloud.worlds import World
from tests.waiting import wait_until

STAGES = ("choosing", "creating", "booting", "preparing", "training", "fetching", "destroying")
REACH_SECONDS = 60.0


@dataclass(frozen=True)
class Case:
    """Where the keeper is killed, or the client."""

    at: str
    """A call of the provider's, or a stage; of a client one of `client_leaks.POINTS`."""
    when: str
    """before, after (the call was carried out, its answer is never read), or during a stage."""
    number: int = 1
    who: str = "keeper"

    def __str__(self) -> str:
        whose = "client, " if self.who == "client" else ""
        return f"{whose}{self.when} {self.at}" + (f" {self.number}" if self.number > 1 else "")


@dataclass(frozen=True)
class Outcome:
    case: Case
    reached: bool
    leaked: list[str]
    lost: str
    doubled: str
    seconds: float
    code: int | None

    @property
    def is_good(self) -> bool:
        return self.reached and not (self.leaked or self.lost or self.doubled)


def cases_of(calls: Sequence[str]) -> list[Case]:
    """From the calls of a run that nobody disturbed: the first and the last of each kind, and every stage."""
    found = []
    for call, count in Counter(calls).items():
        for number in sorted({1, count}):
            found += [Case(call, "before", number), Case(call, "after", number)]
    return found + [Case(stage, "during") for stage in STAGES]


def try_case(
    case: Case, world: World, datacenter: Datacenter, launcher: CloudLauncher, job: Job, gc: Callable[[], Any]
) -> Outcome:
    """One run, killed there, then one gc."""
    started, before = time.monotonic(), len(world.created)
    paths = RunPaths(job.folder)
    if case.when != "during":
        world.tripwire.arm(case.at, case.when, case.number, lambda: kill_keeper(paths))
    launcher.begin(job)
    reached = _reached_stage(case.at, paths) if case.when == "during" else world.tripwire.sprung.wait(REACH_SECONDS)
    gc()
    ending = Ending.read(paths)
    doubled = doubled_of(job, world.created[before:], datacenter)
    seconds = round(time.monotonic() - started, 1)
    return Outcome(
        case,
        reached,
        world.machines(),
        lost(job, paths, datacenter),
        doubled,
        seconds,
        ending.code if ending else None,
    )


def gc_once() -> None:
    found = survey()
    assert not found.problems, found.problems
    for stray in found.strays:
        collect(stray, False, lambda words: None)


def _reached_stage(stage: str, paths: RunPaths) -> bool:
    deadline = time.monotonic() + REACH_SECONDS
    while time.monotonic() < deadline:
        progress = Progress.read(paths)
        if progress is not None and any(one.stage == stage for one in progress.stages):
            kill_keeper(paths)
            return True
        time.sleep(0.002)
    return False


def kill_keeper(paths: RunPaths) -> None:
    """kill -9, and it is dead when this returns."""
    said = f"dtrain.cloud.keeper {paths.output}"
    for pid in subprocess.run(["pgrep", "-f", said], capture_output=True, text=True).stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: not subprocess.run(["pgrep", "-f", said], capture_output=True).stdout, 10)


def run_folders(run_id: str, datacenter: Datacenter) -> list[Path]:
    """The run's folders on the machines that ever were."""
    found = (machine.folder / "opt" / "dtrain" / "runs" / run_id for machine in datacenter.machines.values())
    return [folder for folder in found if (folder / "dtrain" / "supervisor.json").exists()]


def lost(job: Job, home: RunPaths, datacenter: Datacenter) -> str:
    """What the machine has and home has not."""
    for folder in run_folders(job.run_id, datacenter):
        there = RunPaths(folder)
        if not there.exit.exists():
            return "the run on the machine never ended"
        if read_or_none(there.exit)["code"] != (read_or_none(home.exit) or {}).get("code"):  # type: ignore[index]
            return f"ended {there.exit.read_text()} there, {read_or_none(home.exit)} here"
        if there.metrics.exists() and there.metrics.read_bytes() != home.metrics.read_bytes():
            return "metrics differ"
        for manifest in there.checkpoints.glob("step-*/manifest.json"):
            if not (home.run / manifest.relative_to(there.run)).exists():
                return f"{manifest.parent.name} is not home"
    return ""


def doubled_of(job: Job, created: Sequence[str], datacenter: Datacenter) -> str:
    if len(set(created)) < len(created):
        return f"one order, two machines: {created}"
    if len(run_folders(job.run_id, datacenter)) > 1:
        return "the run was started on two machines"
    metrics = RunPaths(job.folder).metrics
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return "" if steps == list(range(1, len(steps) + 1)) else f"steps {steps}"


def table(provider: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What is committed: counts, and each case."""
    return {
        "provider": provider,
        "tried": len(outcomes),
        "reached": sum(one.reached for one in outcomes),
        "leaked": sum(bool(one.leaked) for one in outcomes),
        "lost": sum(bool(one.lost) for one in outcomes),
        "doubled": sum(bool(one.doubled) for one in outcomes),
        "cases": [{**asdict(one), "case": str(one.case)} for one in outcomes],
    }


def ledger_is_closed(run_id: str) -> bool:
    standing = Ledger(run_id).standing()
    return standing is None or standing.ended
