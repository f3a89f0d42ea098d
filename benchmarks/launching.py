"""dtrain's own part of a launch, and of listing runs: `python -m benchmarks.launching [--json FILE]`.

From check to the first step of a rank, on this machine, SLURM, SLURM behind SSH and SSH, on real daemons in network
namespaces (as root). The ranks are stand-ins that import nothing, on one node, so that no queue, preflight or import
is in it; what SLURM itself took, from submit to start, is told beside and taken off.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from dtrain_launchers.local import LocalLauncher
from dtrain_launchers.slurm import SlurmLauncher
from dtrain_launchers.ssh import SshLauncher

from dtrain.files import write_json
from dtrain.launch import registry
from dtrain.launch.api import Handle, Job, Launcher
from dtrain.launch.create import new_id
from dtrain.launch.tunnel import known_hosts
from dtrain.paths import RunPaths
from tests.launch.cli import use_stand_ins
from tests.slurm import cluster as slurm_cluster
from tests.slurm.cluster import Cluster
from tests.slurm.login import a_login_node
from tests.ssh.hosts import Network, why_not

ROUNDS = 5
RUNS = 100
TO_REACH = {"own_seconds": 3.0, "list_seconds": 0.3}
"""Issue 6: submit to first step, without queue, preflight and imports; a hundred runs listed."""
VENV = str(Path(sys.prefix))


@dataclass(frozen=True)
class Place:
    new_launcher: Callable[[], Launcher]
    options: dict[str, Any]
    queue_seconds: Callable[[Handle], float] = lambda handle: 0.0
    """From submit to start, in SLURM's hands."""


def launched(place: Place, folder: Path) -> dict[str, float]:
    """One run to its first step, then stopped; seconds of each part."""
    run_id = new_id()
    job = Job(run_id, "benchmark", folder / run_id, 1, 1, "cpu", options=place.options)
    RunPaths(job.folder).run.mkdir(parents=True)
    launcher, clock = place.new_launcher(), Clock()
    problems = launcher.check(job)
    assert not problems, problems
    clock.lap("check")
    rendered = launcher.render(job)
    clock.lap("render")
    handle = launcher.submit(job, rendered)
    clock.lap("submit")
    first_step = wait_for_first_step(launcher, handle)
    told = {**clock.laps, "start": max(0.0, first_step - clock.now), "queue": place.queue_seconds(handle)}
    launcher.cancel(handle)
    return {**told, "own": sum(told.values()) - 2 * told["queue"]}


class Clock:
    """Seconds between laps, by the clock that log lines carry."""

    def __init__(self) -> None:
        self.now = time.time()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        before, self.now = self.now, time.time()
        self.laps[name] = self.now - before


def wait_for_first_step(launcher: Launcher, handle: Handle) -> float:
    """When rank 0 logged it, by its own clock."""
    metrics = RunPaths(Path(handle.folder)).metrics
    deadline = time.monotonic() + 60
    while not metrics.exists() or not metrics.read_text().endswith("\n"):
        launcher.status(handle)
        assert time.monotonic() < deadline, "no step within a minute"
        time.sleep(0.02)
    return float(json.loads(metrics.read_text().splitlines()[0])["time"])


@contextmanager
def places(folder: Path) -> Iterator[dict[str, Place]]:
    """Every place that this machine can offer."""
    env = {"STAND_IN_STEPS": "1000000"}
    os.environ.update(env)
    found = {"local": Place(LocalLauncher, {})}
    with ExitStack() as stack:
        if why_not() is None:
            found["ssh"] = stack.enter_context(over_ssh(folder, env))
        if why_not() is None and slurm_cluster.lacking() is None:
            cluster = stack.enter_context(slurm_cluster.running(folder / "slurm"))
            os.environ.update(SLURM_CONF=cluster.environment["SLURM_CONF"], PATH=cluster.environment["PATH"])
            found["slurm"] = Place(SlurmLauncher, {"time": "5"}, queue_of(cluster))
            found["slurm login"] = stack.enter_context(through_login(cluster, folder, env))
        yield found


@contextmanager
def over_ssh(folder: Path, env: dict[str, str]) -> Iterator[Place]:
    (folder / "network").mkdir()
    network = Network(folder / "network", 1)
    try:
        host = network.hosts[0]
        known_hosts().parent.mkdir(parents=True, exist_ok=True)
        known_hosts().write_text(host.known_hosts_line)
        base = str(folder / "base")
        options = {"hosts": [{"host": host.where, "base": base}], "key": str(host.key), "venv": VENV, "env": env}
        yield Place(SshLauncher, {**options, "gate": False})
    finally:
        network.close()


@contextmanager
def through_login(cluster: Cluster, folder: Path, env: dict[str, str]) -> Iterator[Place]:
    (folder / "login").mkdir()
    with a_login_node(cluster, folder / "login") as login:
        with known_hosts().open("a") as stream:
            stream.write(login.known_hosts_line)
        there = {"host": login.where, "key": str(login.key), "venv": VENV, "base": str(folder / "there")}
        yield Place(SlurmLauncher, {"login": there, "time": "5", "env": env}, queue_of(cluster))


def queue_of(cluster: Cluster) -> Callable[[Handle], float]:
    def seconds(handle: Handle) -> float:
        """Whole seconds are all that SLURM tells."""
        told = cluster("scontrol", "-o", "show", "job", str(handle.data["job_id"]))
        words = dict(word.split("=", 1) for word in told.split() if "=" in word)
        submitted, started = (
            time.mktime(time.strptime(words[k], "%Y-%m-%dT%H:%M:%S")) for k in ("SubmitTime", "StartTime")
        )
        return started - submitted

    return seconds


def list_seconds(arguments: tuple[str, ...]) -> float:
    """The whole command, from the shell's point of view."""
    before = time.monotonic()
    subprocess.run([sys.executable, "-m", "dtrain", "runs", *arguments], check=True, capture_output=True)
    return time.monotonic() - before


def fill_registry(folder: Path) -> None:
    for number in range(RUNS):
        entry = registry.Entry(
            new_id(number * 1000), f"run-{number}", str(folder / f"run-{number}"), "local", "cpu", number
        )
        registry.write(entry)
        write_json(RunPaths(Path(entry.folder)).exit, {"code": 0, "reason": "done", "step": 1, "ended": 1.0})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    told = parser.parse_args()
    use_stand_ins()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="dtrain-launching-") as scratch:
        folder = Path(scratch)
        os.environ["DTRAIN_HOME"] = str(folder / "home")
        with places(folder) as found:
            rounds = {name: [launched(place, folder) for _ in range(ROUNDS)] for name, place in found.items()}
        fill_registry(folder)
        lists = {
            " ".join(("runs", *words)): [list_seconds(words) for _ in range(ROUNDS)] for words in ((), ("--json",))
        }
    launches = {name: {part: median(one[part] for one in each) for part in each[0]} for name, each in rounds.items()}
    show(launches, lists)
    if told.json:
        document = {
            "schema_version": 1, "to_reach": TO_REACH, "rounds": ROUNDS, "cores": os.cpu_count(),
            "load": [round(load_before, 1), round(os.getloadavg()[0], 1)], "seconds": launches, "all": rounds,
            "list_seconds": lists,
        }  # fmt: skip
        told.json.write_text(json.dumps(document, indent=2) + "\n")


def show(launches: dict[str, dict[str, float]], lists: dict[str, list[float]]) -> None:
    parts = ("check", "render", "submit", "start", "queue", "own")
    print(f"seconds, median of {ROUNDS}".ljust(24) + "".join(part.rjust(9) for part in parts))
    for name, each in launches.items():
        print(name.ljust(24) + "".join(f"{each[part]:9.2f}" for part in parts))
    print(f"own, to reach: under {TO_REACH['own_seconds']:g}")
    for command, seconds in lists.items():
        print(f"dtrain {command}, {RUNS} runs: {median(seconds):.2f} (to reach: under {TO_REACH['list_seconds']:g})")


if __name__ == "__main__":
    main()
