"""The supervisor, its ranks and their end: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dtrain_launchers.local import LocalLauncher

from dtrain.launch import here
from dtrain.launch.api import Handle, Job
from dtrain.launch.ending import Ending
from dtrain.launch.process import children, environment, processes_of_run
from dtrain.launch.ranks import Ranks, first_number
from dtrain.launch.standing import Supervisor, folder_status
from dtrain.paths import RunPaths
from tests.launch.conftest import is_training, left_over
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.usefixtures("stand_ins")
MakeJob = Callable[..., Job]


def submitted(job: Job) -> tuple[RunPaths, Handle]:
    launcher = LocalLauncher()
    return RunPaths(job.folder), launcher.submit(job, launcher.render(job))


def ended(paths: RunPaths) -> Ending:
    wait_until(paths.exit.exists)
    ending = Ending.read(paths)
    assert ending is not None
    return ending


def pid_of_rank(run_id: str, rank: int) -> int:
    found = [one.pid for one in processes_of_run(run_id) if environment(one.pid).get("RANK") == str(rank)]
    return min(found)


def test_a_run_from_its_start_to_its_end(make_job: MakeJob) -> None:
    job = make_job()
    paths, handle = submitted(job)
    status = folder_status(paths)
    assert status is not None
    assert status.state in ("running", "done")
    ending = ended(paths)
    assert (ending.code, ending.reason, ending.step, ending.rank) == (0, "done", 10, None)
    assert LocalLauncher().status(handle).state == "done"
    assert left_over(job.run_id) == []
    document = json.loads(paths.exit.read_text())
    assert {"code", "reason", "step", "ended"} <= set(document)
    assert abs(document["ended"] - time.time()) < 60


def test_preparing_and_starting_happen_side_by_side(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STAND_IN_PREPARE_UNTIL", str(tmp_path / "prepared"))
    paths, _ = submitted(make_job())
    wait_until(lambda: paths.rank_log(1).exists() and paths.rank_log(0).exists())
    assert not paths.data.exists()
    (tmp_path / "prepared").touch()
    assert ended(paths).code == 0


def test_a_failed_preparation_ends_the_run_with_its_own_code(make_job: MakeJob, monkeypatch: Any) -> None:
    monkeypatch.setenv("STAND_IN_PREPARE_FAILS", "1")
    job = make_job()
    paths, _ = submitted(job)
    ending = ended(paths)
    assert ending.code == 2
    assert "row 3 has no field 'output'" in ending.reason
    assert left_over(job.run_id) == []


def test_stop_lets_the_ranks_save(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_STEPS", "100000")
    monkeypatch.setenv("STAND_IN_SAVE_SECONDS", "0.5")
    job = make_job()
    paths, handle = submitted(job)
    wait_until(lambda: is_training(paths))
    LocalLauncher().cancel(handle)
    ending = ended(paths)
    saved = int(next(paths.checkpoints.glob("step-*")).name.removeprefix("step-"))
    assert (ending.code, ending.step) == (75, saved)
    assert f"the checkpoint of step {saved} is kept" in ending.reason
    assert left_over(job.run_id) == []


def test_two_requests_to_stop_do_not_cost_the_checkpoint(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STAND_IN_STEPS", "100000")
    monkeypatch.setenv("STAND_IN_SAVE_UNTIL", str(tmp_path / "saved"))
    paths, _ = submitted(make_job())
    wait_until(lambda: is_training(paths))
    supervisor = Supervisor.read(paths)
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGTERM)
    wait_until(lambda: "rank 0 saves" in paths.rank_log(0).read_text())
    os.kill(supervisor.pid, signal.SIGTERM)
    time.sleep(0.2)  # if it meant more than the first, it would by now
    (tmp_path / "saved").touch()
    assert ended(paths).code == 75
    assert list(paths.checkpoints.glob("step-*/manifest.json"))


def test_stop_before_training_began(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_PREPARE_UNTIL", "/never")
    job = make_job()
    paths, handle = submitted(job)
    LocalLauncher().cancel(handle)
    ending = ended(paths)
    assert ending.code == 75
    assert "no checkpoint was saved yet" in ending.reason
    assert left_over(job.run_id) == []


def test_kill_does_not_wait_for_deaf_ranks(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_STEPS", "100000")
    monkeypatch.setenv("STAND_IN_DEAF", "1")
    job = make_job(options={"grace_seconds": 600})
    paths, handle = submitted(job)
    wait_until(lambda: is_training(paths))
    LocalLauncher().kill(handle)
    assert ended(paths).code == 75
    assert left_over(job.run_id) == []


def test_ranks_that_do_not_stop_in_time_are_killed(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_STEPS", "100000")
    monkeypatch.setenv("STAND_IN_DEAF", "1")
    job = make_job(options={"grace_seconds": 1})
    paths, handle = submitted(job)
    wait_until(lambda: is_training(paths))
    LocalLauncher().cancel(handle)
    ending = ended(paths)
    assert ending.code == 75
    assert "did not stop within 1 s" in ending.reason
    assert left_over(job.run_id) == []


def test_a_rank_told_to_stop_by_somebody_else_ends_the_run_as_interrupted(make_job: MakeJob, monkeypatch: Any) -> None:
    monkeypatch.setenv("STAND_IN_STEPS", "100000")
    monkeypatch.setenv("STAND_IN_SAVE_SECONDS", "0.5")
    job = make_job()
    paths, _ = submitted(job)
    wait_until(lambda: is_training(paths))
    for rank in (0, 1):
        os.kill(pid_of_rank(job.run_id, rank), signal.SIGTERM)
    ending = ended(paths)
    assert ending.code == 75
    assert list(paths.checkpoints.glob("step-*/manifest.json"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_run_in_seconds_and_leaves_nothing(
    make_job: MakeJob, monkeypatch: Any, rank: int
) -> None:
    monkeypatch.setenv("STAND_IN_STEPS", "100000")
    monkeypatch.setenv("STAND_IN_GRANDCHILD", "1")
    job = make_job()
    paths, _ = submitted(job)
    wait_until(lambda: is_training(paths))
    assert len(processes_of_run(job.run_id)) > 5  # torchrun, two ranks, and a shell with two sleepers below each
    os.kill(pid_of_rank(job.run_id, rank), signal.SIGKILL)  # torchrun would look in ten minutes
    ending = ended(paths)
    assert (ending.code, ending.rank) == (1, rank)
    assert f"rank {rank} was killed by SIGKILL" in ending.reason
    assert left_over(job.run_id) == []


def test_a_rank_that_raises_is_named_with_its_words(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_STEPS", "100000")
    monkeypatch.setenv("STAND_IN_FAILS", "1@5")
    job = make_job()
    paths, handle = submitted(job)
    ending = ended(paths)
    assert (ending.code, ending.rank) == (1, 1)
    assert ending.reason == "rank 1: RuntimeError: the stand-in was told to fail"
    lines = list(LocalLauncher().logs(handle, follow=False))
    assert lines[0] == "[rank 1] rank 1 listens"
    assert left_over(job.run_id) == []


def test_a_rank_whose_exit_code_torchrun_took_is_named_with_its_words(make_job: MakeJob, monkeypatch: Any) -> None:
    monkeypatch.setenv("STAND_IN_STEPS", "100000")
    monkeypatch.setenv("STAND_IN_FAILS", "1@5")
    monkeypatch.setenv("STAND_IN_REAPS", "1")
    paths, _ = submitted(make_job())
    ending = ended(paths)
    assert (ending.code, ending.rank) == (1, 1)
    assert ending.reason == "rank 1: RuntimeError: the stand-in was told to fail"


def test_a_rank_that_died_before_it_was_seen_is_seen_dead() -> None:
    """Its environment is gone with it; torchrun starts ranks in order, and takes no exit code for half a minute."""
    script = "RANK=4 LOCAL_RANK=0 sleep 60 & sh -c 'exit 3' & exec sleep 60"
    with subprocess.Popen(["sh", "-c", script]) as torchrun:
        wait_until(lambda: sorted(one.state for one in children(torchrun.pid))[-1:] == ["Z"])
        ranks = Ranks(2, first_number(["--nnodes", "2"]))
        wait_until(lambda: any("RANK" in environment(one.pid) for one in children(torchrun.pid)))
        ranks.update(torchrun.pid)
        assert [(one.number, one.exit_code) for one in ranks.failed(frozenset())] == [(5, 3)]
        os.kill(ranks.seen[4].process.pid, signal.SIGKILL)
        torchrun.kill()


def test_a_killed_supervisor_takes_everything_with_it(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_STEPS", "100000")
    monkeypatch.setenv("STAND_IN_GRANDCHILD", "1")
    job = make_job()
    paths, handle = submitted(job)
    wait_until(lambda: is_training(paths))
    supervisor = Supervisor.read(paths)
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    wait_until(lambda: LocalLauncher().status(handle).state == "lost")
    assert left_over(job.run_id) == []
    assert not paths.exit.exists()


def test_a_killed_torchrun_is_a_failure_and_leaves_nothing(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_STEPS", "100000")
    job = make_job()
    paths, _ = submitted(job)
    wait_until(lambda: is_training(paths))
    (torchrun,) = [one.pid for one in processes_of_run(job.run_id) if "RANK" not in environment(one.pid)]
    os.kill(torchrun, signal.SIGKILL)
    assert ended(paths).code == 1
    assert left_over(job.run_id) == []


def test_a_second_submit_starts_nothing(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_STEPS", "50")
    job = make_job()
    paths, first = submitted(job)
    supervisor = Supervisor.read(paths)
    _, second = submitted(job)
    assert second == first
    assert Supervisor.read(paths) == supervisor
    assert ended(paths).code == 0
    submitted(job)
    assert Supervisor.read(paths) == supervisor


def test_many_submits_at_once_make_one_run(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_STEPS", "100")
    job = make_job()
    rendered = LocalLauncher().render(job)
    for path, content in rendered.files.items():
        Path(path).write_text(content)
    racers = [subprocess.Popen(here.supervise_command(RunPaths(job.folder))) for _ in range(5)]
    codes = sorted(racer.wait(PATIENCE_SECONDS) for racer in racers)
    assert codes == [0, 3, 3, 3, 3]
    assert [line["step"] for line in map(json.loads, RunPaths(job.folder).metrics.read_text().splitlines())] == list(
        range(1, 101)
    )


def test_cancelling_an_ended_or_never_started_run_does_nothing(make_job: MakeJob) -> None:
    job = make_job()
    LocalLauncher().cancel(Handle("local", job.run_id, str(job.folder)))
    paths, handle = submitted(job)
    ending = ended(paths)
    LocalLauncher().cancel(handle)
    LocalLauncher().cancel(handle)
    assert Ending.read(paths) == ending


HOSTILE = [
    "with space",
    "qu'ote\"s",
    "semi;colon && $(touch x)",
    "new\nline",
    "ünïcødé 漢字",
    "-dash",
    "a\\b",
    "100% {x}",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folder_names(make_job: MakeJob, tmp_path: Path, name: str) -> None:
    job = make_job(tmp_path / name)
    paths, handle = submitted(job)
    assert ended(paths).code == 0
    assert LocalLauncher().status(handle).state == "done"
    assert any("rank 1 listens" in line for line in LocalLauncher().logs(handle, follow=True))
    assert not list(tmp_path.glob("**/x"))


def test_the_environment_is_explicit(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_STEPS", "100000")
    monkeypatch.setenv("WORLD_SIZE", "99")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    job = make_job(options={"env": {"MINE": 1}})
    paths, _ = submitted(job)
    wait_until(lambda: is_training(paths))
    seen = environment(pid_of_rank(job.run_id, 0))
    assert seen["WORLD_SIZE"] == "2"
    assert seen["CUDA_VISIBLE_DEVICES"] == ""
    assert seen["DS_ACCELERATOR"] == "cpu"
    assert seen["MINE"] == "1"
    assert int(seen["OMP_NUM_THREADS"]) >= 1
    assert seen["HF_HUB_DISABLE_TELEMETRY"] == "1"
