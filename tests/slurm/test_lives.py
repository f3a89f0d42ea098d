"""Preempted, at its time limit, on a node that dies: the run goes on in the same job, or says why not. Stand-ins."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dtrain_launchers.slurm import SlurmLauncher

from dtrain.launch import spec
from dtrain.launch.api import Handle, Job
from dtrain.launch.ending import last_checkpoint
from dtrain.paths import RunPaths
from tests.launch.conftest import is_training, left_over
from tests.slurm.cluster import Cluster
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]
Start = Callable[..., "Life"]
LONG = 100_000
REAL_TORCHRUN = spec.torchrun_command


class Life:
    """A submitted run of stand-ins."""

    def __init__(self, cluster: Cluster, job: Job) -> None:
        self.cluster, self.job, self.paths = cluster, job, RunPaths(job.folder)
        self.launcher = SlurmLauncher()
        assert self.launcher.check(job) == []
        self.handle: Handle = self.launcher.submit(job, self.launcher.render(job))

    @property
    def id(self) -> str:
        return str(self.handle.data["job_id"])

    def told(self, key: str) -> str:
        """A field of `scontrol show job`."""
        text = self.cluster("scontrol", "--oneliner", "show", "job", self.id)
        return next(word.partition("=")[2] for word in text.split() if word.startswith(f"{key}="))

    def wait_training(self) -> None:
        wait_until(lambda: is_training(self.paths))

    def wait_restarted(self) -> None:
        wait_until(lambda: self.told("Restarts") == "1")

    def wait_state(self, *states: str) -> None:
        wait_until(lambda: self.launcher.status(self.handle).state in states)

    def steps(self) -> list[int]:
        return [json.loads(line)["step"] for line in self.paths.metrics.read_text().splitlines()]

    def preempt(self) -> None:
        """A job of a higher tier takes the node for a moment."""
        node = self.told("NodeList")
        self.cluster("sbatch", "-p", "high", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap=sleep 1")

    def finish(self) -> None:
        """Let the next life end soon, and see it end well."""
        self.wait_state("done", "failed", "lost")
        status = self.launcher.status(self.handle)
        assert (status.state, status.exit_code) == ("done", 0), status
        assert left_over(self.job.run_id) == []


@pytest.fixture
def start(cluster: Cluster, make_job: Callable[..., Job], stand_ins: None, monkeypatch: pytest.MonkeyPatch) -> Start:
    def started(steps: int = 60, step_seconds: float = 0.05, nodes: int = 1, **options: Any) -> Life:
        monkeypatch.setenv("STAND_IN_STEPS", str(steps))
        monkeypatch.setenv("STAND_IN_STEP_SECONDS", str(step_seconds))
        return Life(cluster, replace(make_job(options=options), nodes=nodes))

    return started


def test_preempted_and_saved_or_killed_before_it_could(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a node each. With grace time the run saves and requeues itself. Without, and where saving takes long, SLURM
    kills it, and requeues it by itself."""
    saves = start(nodelist="slurm1")
    saves.wait_training()
    saves.preempt()
    monkeypatch.setenv("STAND_IN_SAVE_UNTIL", "/never")
    killed = start(partition="hasty", nodelist="slurm2")
    killed.wait_training()
    killed.preempt()
    saves.wait_state("pending")
    assert not saves.paths.exit.exists()
    saved = last_checkpoint(saves.paths)
    assert saved is not None
    wait_until(lambda: "BeginTime" in saves.launcher.status(saves.handle).reason)
    assert f"goes on after step {saved}" in saves.launcher.status(saves.handle).reason
    saves.wait_restarted()
    saves.finish()
    assert saves.steps() == list(range(1, 61))
    assert "requeue 1 of at most 20" in saves.paths.job_log.read_text()

    killed.wait_restarted()
    assert not killed.paths.exit.exists()
    assert last_checkpoint(killed.paths) is None
    killed.finish()
    again = killed.steps().index(1, 1)
    assert killed.steps()[again:] == list(range(1, 61))


def test_the_signal_before_the_time_limit_and_a_preemption_before_the_first_step(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a node each. The real limit of a minute; SLURM's warning comes up to half a minute early."""
    limited = start(LONG, signal="USR2", signal_margin_seconds=55, time="00:01:00", nodelist="slurm1")
    limited.wait_training()
    monkeypatch.setenv("STAND_IN_PREPARE_UNTIL", str(tmp_path / "prepared"))
    early = start(nodelist="slurm2")
    wait_until(early.paths.rank_log(1).exists)
    early.preempt()
    early.wait_restarted()
    assert not early.paths.metrics.exists()
    (tmp_path / "prepared").touch()

    limited.wait_restarted()
    saved = last_checkpoint(limited.paths)
    assert saved is not None
    wait_until(lambda: limited.launcher.status(limited.handle).state == "running")
    wait_until(lambda: limited.steps()[-1] > saved)
    limited.launcher.cancel(limited.handle)
    status = limited.launcher.status(limited.handle)
    assert (status.state, status.exit_code) == ("interrupted", 75)
    assert limited.steps() == list(range(1, limited.steps()[-1] + 1))
    early.finish()
    assert early.steps() == list(range(1, 61))


def test_the_cap_on_requeues(start: Start) -> None:
    life = start(LONG, max_requeues=0)
    life.wait_training()
    life.cluster("scancel", "--batch", "--signal=USR1", life.id)
    life.wait_state("interrupted")
    status = life.launcher.status(life.handle)
    assert status.exit_code == 75
    assert "max_requeues is 0" in status.reason
    wait_until(lambda: life.told("JobState") == "FAILED")
    assert life.told("ExitCode") == "75:0"


def test_a_node_whose_plug_is_pulled(start: Start) -> None:
    life = start(60)
    life.wait_training()
    node = life.told("NodeList")
    life.cluster.pull_the_plug(node)
    life.cluster("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    life.wait_restarted()
    life.finish()
    assert life.told("NodeList") != node
    assert life.steps()[-1] == 60


@pytest.fixture
def start_on_two(start: Start, monkeypatch: pytest.MonkeyPatch) -> Start:
    """On two nodes, with torch's own torchrun between them."""
    monkeypatch.setattr(spec, "torchrun_command", REAL_TORCHRUN)
    monkeypatch.setenv("STAND_IN_GRANDCHILD", "1")
    return lambda *arguments, **options: start(*arguments, nodes=2, **options)


def test_a_rank_that_fails_on_the_second_node_ends_both(start_on_two: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_FAILS", "3@40")
    life = start_on_two(LONG)
    life.wait_state("failed")
    assert life.launcher.status(life.handle).reason == "rank 3: RuntimeError: the stand-in was told to fail"
    assert next(life.launcher.logs(life.handle, follow=False)).startswith("[rank 3]")
    wait_until(lambda: life.told("ExitCode") == "1:0")
    assert left_over(life.job.run_id) == []


def test_a_stop_reaches_every_rank_of_two_nodes(start_on_two: Start) -> None:
    life = start_on_two(LONG)
    wait_until(lambda: all(life.paths.rank_log(rank).exists() for rank in range(4)) and is_training(life.paths))
    life.launcher.cancel(life.handle)
    status = life.launcher.status(life.handle)
    assert (status.state, status.exit_code) == ("interrupted", 75)
    assert last_checkpoint(life.paths) is not None
    assert left_over(life.job.run_id) == []


def test_a_person_s_scancel_is_an_interruption(start: Start) -> None:
    life = start(LONG)
    life.wait_training()
    life.cluster("scancel", life.id)
    life.wait_state("interrupted")
    assert last_checkpoint(life.paths) is not None
    assert left_over(life.job.run_id) == []


def test_a_pending_job_says_why_and_when(start: Start, cluster: Cluster) -> None:
    cluster("sbatch", "-p", "high", "-N", "2", "--exclusive", "-o", "/dev/null", "--time=5", "--wrap=sleep 60")
    wait_until(lambda: "allocated" in cluster.states())
    life = start(5)
    wait_until(lambda: "expects it to start at" in life.launcher.status(life.handle).reason)
    status = life.launcher.status(life.handle)
    assert status.state == "pending"
    assert "Resources" in status.reason or "Priority" in status.reason
    life.launcher.cancel(life.handle)
    assert life.launcher.status(life.handle).state == "interrupted"


def test_an_array_of_seeds(start: Start) -> None:
    life = start(5, seeds=[11, 12, 13])
    assert "#SBATCH --array=0-2" in life.paths.job_script.read_text()
    life.finish()
    assert life.launcher.status(life.handle).reason == "done: seed-11, seed-12, seed-13"
    for seed in (11, 12, 13):
        one = RunPaths(life.job.folder / f"seed-{seed}")
        assert json.loads(one.exit.read_text())["code"] == 0
        assert f"seed: {seed}\n" in one.config.read_text()
        assert len(one.metrics.read_text().splitlines()) == 5


def test_a_stopped_array_goes_on_with_what_is_left(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    life = start(LONG, seeds=[1, 2])
    wait_until(lambda: all(is_training(RunPaths(life.job.folder / f"seed-{seed}")) for seed in (1, 2)))
    life.launcher.cancel(life.handle)
    assert life.launcher.status(life.handle).state == "interrupted"
    assert [left_over(f"{life.job.run_id}-seed-{seed}") for seed in (1, 2)] == [[], []]
    reached = [last_checkpoint(RunPaths(life.job.folder / f"seed-{seed}")) or 0 for seed in (1, 2)]
    assert min(reached) > 0
    life.paths.exit.unlink()  # as `dtrain resume` puts it aside
    monkeypatch.setenv("STAND_IN_STEPS", str(max(reached) + 5))
    life.handle = life.launcher.submit(life.job, life.launcher.render(life.job))
    life.finish()
