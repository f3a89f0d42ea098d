"""Rented runs under random faults: keepers killed, answers lost, machines taken back, clients that stop or come back.

    python -m tests.soak.rentals --launches 200 --json tests/measured/soak_rentals.json

A hypothesis state machine over one account at AWS (moto behind our proxy) and machines that really boot. Whatever it
did, at the end of each example one `dtrain gc` must leave no machine, no run without an end, and nothing that was
trained and is not home.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from dtrain.launch.api import Job
from dtrain.launch.create import new_id
from dtrain.launch.ending import read_or_none
from dtrain.paths import RunPaths
from tests.cloud.aws_world import AwsWorld, Fault
from tests.cloud.datacenter import Datacenter
from tests.cloud.hurry import hurry
from tests.cloud.leaks import gc_once, kill_keeper, ledger_is_closed, run_folders
from tests.launch import cli

FAULTS = [
    ("RunInstances", "lost"), ("RunInstances", "cut"), ("RunInstances", "html"),
    ("RunInstances", "RequestLimitExceeded"), ("RunInstances", "InsufficientInstanceCapacity"),
    ("DescribeInstances", "html"), ("DescribeInstances", "cut"), ("DescribeInstances", "RequestLimitExceeded"),
    ("TerminateInstances", "lost"), ("TerminateInstances", "html"),
]  # fmt: skip
RUNS_AT_ONCE = 3
LET_BE_SECONDS = 12.0
ANY = st.integers(0, 11)
"""Which run or machine; how many there are depends on the clock, and hypothesis wants draws that do not."""


@dataclass
class Tally:
    launches: int = 0
    leaked: int = 0
    lost: int = 0
    doubled: int = 0
    without_an_end: int = 0
    examples: int = 0
    what_happened: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not (self.leaked or self.lost or self.doubled or self.without_an_end)


@dataclass
class Bench:
    """What the examples share."""

    folder: Path
    datacenter: Datacenter
    world: AwsWorld
    tally: Tally
    launches: int
    began: float
    deadline: float

    @property
    def is_over(self) -> bool:
        return self.tally.launches >= self.launches or time.monotonic() > self.deadline


bench: Bench


class Rentals(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.jobs: list[Job] = []
        if bench.is_over:
            raise KeyboardInterrupt  # hypothesis passes it on: so many launches were enough
        bench.tally.examples += 1
        bench.world.reset()

    @precondition(lambda self: len(self.jobs) < RUNS_AT_ONCE)
    @rule(steps=st.sampled_from([3, 40, 400]), spot=st.booleans(), fault=st.none() | st.sampled_from(FAULTS))
    def launch(self, steps: int, spot: bool, fault: tuple[str, str] | None) -> None:
        from dtrain_launchers.aws import AwsLauncher

        if fault is not None:
            self._note(f"{fault[1]} at {fault[0]}")
            bench.world.faults.append(Fault(*fault))
        run_id = new_id()
        plain = {"venv": sys.prefix, "gate": False, "env": {"STAND_IN_STEPS": str(steps)}, "poll_seconds": 0.2}
        options = {**bench.world.options, **plain, "spot": spot}
        job = Job(run_id, "soak", bench.folder / run_id, 1, 2, "cpu", options=options)
        RunPaths(job.folder).run.mkdir(parents=True)
        AwsLauncher().begin(job)
        bench.tally.launches += 1
        self.jobs.append(job)

    @precondition(lambda self: bool(self.jobs))
    @rule(which=ANY, after_seconds=st.floats(0, 4))
    def kill_a_keeper(self, which: int, after_seconds: float) -> None:
        self._note("keeper killed")
        time.sleep(after_seconds)
        kill_keeper(RunPaths(self.jobs[which % len(self.jobs)].folder))

    @precondition(lambda self: bool(self.jobs))
    @rule(which=ANY)
    def a_client_comes_back(self, which: int) -> None:
        from dtrain_launchers.aws import AwsLauncher

        self._note("client came back")
        AwsLauncher().status(_handle(self.jobs[which % len(self.jobs)]))

    @precondition(lambda self: bool(self.jobs))
    @rule(which=ANY)
    def a_machine_is_taken_back(self, which: int) -> None:
        on = bench.datacenter.on
        if on:
            self._note("machine taken back")
            on[which % len(on)].take_back()

    @precondition(lambda self: bool(self.jobs))
    @rule(seconds=st.floats(0, 3))
    def time_passes(self, seconds: float) -> None:
        time.sleep(seconds)

    @precondition(lambda self: bool(self.jobs))
    @rule(which=ANY)
    def a_run_is_let_be(self, which: int) -> None:
        """Until it has ended by itself, or for so long that it has lost its keeper."""
        self._note("let be")
        run_id, deadline = self.jobs[which % len(self.jobs)].run_id, time.monotonic() + LET_BE_SECONDS
        while not ledger_is_closed(run_id) and time.monotonic() < deadline:
            time.sleep(0.1)

    def teardown(self) -> None:
        if not getattr(self, "jobs", []):
            return
        for job in self.jobs:
            kill_keeper(RunPaths(job.folder))
        bench.world.faults.clear()
        gc_once()
        self._judge()

    def _judge(self) -> None:
        tally = bench.tally
        left = bench.world.machines()
        tally.leaked += len(left)
        tally.doubled += len(bench.world.created) - len(set(bench.world.created))
        for job in self.jobs:
            paths = RunPaths(job.folder)
            ending = read_or_none(paths.exit)
            tally.without_an_end += not ledger_is_closed(job.run_id)
            tally.ends[str(ending["code"]) if ending else "refused"] += 1
            if ending and ending["code"] not in (0, 75):
                tally.details.append(f"{job.run_id}: code {ending['code']}: {ending['reason']}")
            problem = _not_home(job, paths)
            tally.lost += problem is not None
            if problem:
                tally.details.append(f"{job.run_id}: {problem}")
        passed = time.monotonic() - bench.began
        told = f"{tally.launches} launches, {tally.examples} examples, good: {tally.is_good}"
        print(f"{passed:.0f} s: {told}", flush=True)
        assert tally.is_good, (left, tally)

    def _note(self, what: str) -> None:
        bench.tally.what_happened[what] += 1


def _handle(job: Job) -> Any:
    from dtrain.launch.api import Handle

    return Handle("aws", job.run_id, str(job.folder))


def _not_home(job: Job, home: RunPaths) -> str | None:
    """Of the last machine that ran it: its figures, its last checkpoint, how it ended. Every step was logged once."""
    folders = run_folders(job.run_id, bench.datacenter)
    if not folders:
        return None
    there = RunPaths(folders[-1])
    if not there.exit.exists():
        return "the run on the machine never ended"
    if there.metrics.exists() and (
        not home.metrics.exists() or there.metrics.read_bytes() != home.metrics.read_bytes()
    ):
        return "metrics differ"
    for manifest in there.checkpoints.glob("step-*/manifest.json"):
        if not (home.run / manifest.relative_to(there.run)).exists():
            return f"{manifest.parent.name} is not home"
    steps = (
        [json.loads(line)["step"] for line in home.metrics.read_text().splitlines()] if home.metrics.exists() else []
    )
    return None if steps == list(range(1, len(steps) + 1)) else f"steps {steps}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    global bench
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    cli.use_stand_ins()
    hurry()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        bench = _bench(Path(name), told.launches, told.minutes)
        started = time.monotonic()
        try:
            with contextlib.suppress(KeyboardInterrupt):
                run_state_machine_as_test(Rentals, settings=_settings())
        finally:
            _write(told.json, bench.tally, time.monotonic() - started)
            bench.world.close()
            bench.datacenter.close()
    return 0 if bench.tally.is_good else 1


def _bench(folder: Path, launches: int, minutes: float) -> Bench:
    (folder / "datacenter").mkdir()
    datacenter = Datacenter(folder / "datacenter")
    world = AwsWorld(datacenter)
    os.environ.update(world.environment, DTRAIN_HOME=str(folder / "home"))
    began = time.monotonic()
    return Bench(folder, datacenter, world, Tally(), launches, began, began + minutes * 60)


def _settings() -> settings:
    """No shrinking: an example is not the same twice where processes are killed."""
    return settings(
        max_examples=1000, stateful_step_count=12, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def _write(file: Path | None, tally: Tally, seconds: float) -> None:
    document = {
        "provider": "aws (moto behind a proxy of ours), machines are network namespaces", "launches": tally.launches,
        "examples": tally.examples, "leaked": tally.leaked, "lost": tally.lost, "doubled": tally.doubled,
        "without_an_end": tally.without_an_end, "what_happened": dict(tally.what_happened.most_common()),
        "ends": dict(tally.ends), "details": tally.details, "minutes": round(seconds / 60, 1),
        "machine": f"{os.cpu_count()} cores, load {os.getloadavg()[1]:.0f}, {platform.platform()}",
    }  # fmt: skip
    print(json.dumps(document, indent=1))
    if file is not None:
        file.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
