"""torchrun itself under the supervisor, with the stand-in as its worker."""

from __future__ import annotations

import os
import signal
import socket
import sys

import pytest

from dtrain.launch import spec
from dtrain.launch.process import processes_of_run
from tests.launch import cli
from tests.launch.conftest import is_training, left_over
from tests.launch.test_supervise import MakeJob, ended, pid_of_rank, submitted
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def stand_in_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "prepare_command", lambda folder: (sys.executable, cli.STAND_IN, "prepare", folder))
    monkeypatch.setattr(spec, "worker_arguments", lambda folder: (cli.STAND_IN, "worker", folder))


def test_a_taken_port_is_left_for_a_free_one(make_job: MakeJob) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        job = make_job(options={"master_port": taken.getsockname()[1]})
        paths, _ = submitted(job)
        assert ended(paths).code == 0
    assert "trying again with a free one" in paths.launch_log.read_text()


def test_two_runs_at_once_do_not_meet(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two people on one machine: each has its own port, whatever MASTER_PORT the shell holds."""
    monkeypatch.setenv("MASTER_PORT", "29500")
    runs = [submitted(make_job())[0] for _ in range(2)]
    assert [ended(paths).code for paths in runs] == [0, 0]


def test_a_killed_rank_is_seen_before_torchrun_sees_it(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_STEPS", "100000")
    monkeypatch.setattr(spec, "MONITOR_SECONDS", 300.0)  # torchrun would see it then
    job = make_job(ranks=3)
    paths, _ = submitted(job)
    wait_until(lambda: is_training(paths))
    os.kill(pid_of_rank(job.run_id, 2), signal.SIGKILL)
    ending = ended(paths)
    assert ending.rank == 2
    assert left_over(job.run_id) == []


def test_a_killed_supervisor_takes_torchrun_and_its_ranks_along(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_STEPS", "100000")
    job = make_job()
    paths, _ = submitted(job)
    wait_until(lambda: is_training(paths))
    assert len(processes_of_run(job.run_id)) >= 3
    os.kill(int(paths.supervisor.read_text().split('"pid": ')[1].split(",")[0]), signal.SIGKILL)
    assert left_over(job.run_id) == []


def test_a_worker_that_cannot_start_is_a_failure_with_its_words(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spec, "worker_arguments", lambda folder: ("/no/such/worker.py", folder))
    job = make_job()
    paths, _ = submitted(job)
    assert ended(paths).code == 1
    assert "No such file" in paths.launch_log.read_text()
    assert left_over(job.run_id) == []
