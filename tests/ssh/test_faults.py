"""What a client, a line and a host do to a run: nothing is lost, nothing runs twice, nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dtrain_launchers.ssh import SshLauncher

from dtrain.errors import LauncherRefused
from dtrain.launch.api import Handle, Job
from dtrain.launch.ending import put_aside
from dtrain.launch.process import every_process, processes_of_run
from dtrain.launch.tunnel import known_hosts
from dtrain.paths import RunPaths
from tests.launch.conftest import is_training, left_over
from tests.launch.lives import read, supervisors
from tests.ssh.hosts import Host
from tests.waiting import wait_until

NewJob = Callable[..., Job]
LONG = 100_000


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> SshLauncher:
    monkeypatch.setattr(SshLauncher, "look_seconds", 0.1)
    return SshLauncher()


def submitted(launcher: SshLauncher, job: Job) -> Handle:
    handle: Handle = launcher.submit(job, launcher.render(job))
    return handle


def training(launcher: SshLauncher, handle: Handle) -> bool:
    launcher.status(handle)
    return is_training(RunPaths(Path(handle.folder)))


def test_a_refused_connection_is_told_at_check_and_starts_nothing(
    launcher: SshLauncher, ssh_job: NewJob, hosts: list[Host]
) -> None:
    job = ssh_job()
    hosts[0].down()
    try:
        (problem,) = launcher.check(job)
        with pytest.raises(LauncherRefused, match="cannot be reached"):
            submitted(launcher, job)
    finally:
        hosts[0].up()
    assert "cannot be reached" in problem
    assert hosts[0].address in problem


def test_an_sshd_that_comes_up_late_is_waited_for(launcher: SshLauncher, ssh_job: NewJob, hosts: list[Host]) -> None:
    job = ssh_job(5, options={"wait_seconds": 20})
    hosts[0].down()
    late = threading.Timer(1.5, hosts[0].up)
    late.start()
    handle = submitted(launcher, job)
    late.join()
    wait_until(lambda: launcher.status(handle).state == "done")


def test_a_cut_link_is_not_the_end_of_a_run(launcher: SshLauncher, ssh_job: NewJob, hosts: list[Host]) -> None:
    if hosts[0].namespace is None:
        pytest.skip("no network namespaces: no link to cut")
    handle = submitted(launcher, ssh_job(LONG, options={"connect_seconds": 1}))
    wait_until(lambda: training(launcher, handle))
    before = len(RunPaths(Path(handle.folder)).metrics.read_text().splitlines())
    hosts[0].cut()
    try:
        other = SshLauncher()  # a line that was open would hang until its time is over
        status = other.status(handle)
    finally:
        hosts[0].mend()
    assert status.state == "running"
    assert "cannot be reached" in status.reason
    assert "last seen" in status.reason
    wait_until(lambda: "cannot" not in other.status(handle).reason)
    wait_until(lambda: len(RunPaths(Path(handle.folder)).metrics.read_text().splitlines()) > before)
    other.cancel(handle)
    assert other.status(handle).state == "interrupted"
    steps = [json.loads(line)["step"] for line in RunPaths(Path(handle.folder)).metrics.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))


def test_a_run_outlives_its_client_and_its_session(launcher: SshLauncher, ssh_job: NewJob, hosts: list[Host]) -> None:
    handle = submitted(launcher, ssh_job(LONG))
    hosts[0].down()  # every session of sshd is killed
    hosts[0].up()
    other = SshLauncher()
    wait_until(lambda: training(other, handle))
    other.cancel(handle)
    assert left_over(handle.run_id) == []


def test_a_host_that_lost_its_power_is_told_as_lost_and_goes_on_after_a_resume(
    launcher: SshLauncher, ssh_job: NewJob, hosts: list[Host]
) -> None:
    if hosts[0].namespace is None:
        pytest.skip("no namespaces: no power to cut")
    job = ssh_job(LONG)
    handle = submitted(launcher, job)
    wait_until(lambda: training(launcher, handle))
    hosts[0].power_off()
    hosts[0].up()
    wait_until(lambda: launcher.status(handle).state == "lost")
    assert left_over(job.run_id) == []
    submitted(launcher, job)
    wait_until(lambda: launcher.status(handle).state == "running")
    launcher.cancel(handle)


def test_a_resume_goes_on_and_a_late_duplicate_of_the_first_submit_does_not(
    launcher: SshLauncher, ssh_job: NewJob
) -> None:
    job = ssh_job(LONG)
    handle = submitted(launcher, job)
    wait_until(lambda: training(launcher, handle))
    launcher.cancel(handle)
    paths = RunPaths(job.folder)
    reached = json.loads(paths.exit.read_text())["step"]
    put_aside(paths)  # as `dtrain resume` does
    submitted(launcher, job)
    wait_until(lambda: launcher.status(handle).state == "running" and paths.state.exists())
    wait_until(lambda: launcher.status(handle) and json.loads(paths.state.read_text())["step"] > reached)
    assert supervisors(job.run_id) == 1
    launcher.cancel(handle)
    assert launcher.status(handle).state == "interrupted"


def test_an_unknown_host_key_is_refused_and_accepted_only_when_told_to(
    launcher: SshLauncher, ssh_job: NewJob, hosts: list[Host], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known_hosts().unlink()
    (problem,) = launcher.check(ssh_job())
    assert "nobody vouched for" in problem
    assert "SHA256:" in problem
    assert not known_hosts().exists()
    assert SshLauncher().check(ssh_job(options={"accept_new_host_keys": True})) == []
    assert hosts[0].address in known_hosts().read_text()
    assert SshLauncher().check(ssh_job()) == []


def test_a_changed_host_key_is_refused_also_when_new_ones_are_accepted(
    launcher: SshLauncher, ssh_job: NewJob, hosts: list[Host]
) -> None:
    job = ssh_job(5, options={"accept_new_host_keys": True})
    before = known_hosts().read_text()
    hosts[0].another_host_key()
    (problem,) = launcher.check(job)
    assert "has CHANGED" in problem
    with pytest.raises(LauncherRefused, match="has CHANGED"):
        submitted(launcher, job)
    assert known_hosts().read_text() == before


def test_a_pinned_key_counts_alone(
    launcher: SshLauncher, options: Callable[..., dict[str, Any]], hosts: list[Host], ssh_job: NewJob
) -> None:
    told = options(hosts[0])
    told["hosts"][0]["host_key"] = hosts[0].host_key
    known_hosts().write_text("")
    assert launcher.check(ssh_job(options=told)) == []
    told["hosts"][0]["host_key"] = hosts[1].host_key
    (problem,) = SshLauncher().check(ssh_job(options=told))
    assert "CHANGED" in problem


def test_secrets_are_in_no_file_and_no_command_line(
    launcher: SshLauncher, ssh_job: NewJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-of-the-test")
    job = ssh_job(LONG)
    assert "a-secret-of-the-test" not in str(launcher.render(job))
    handle = submitted(launcher, job)
    wait_until(lambda: training(launcher, handle))
    environments = [(Path("/proc") / str(one.pid) / "environ") for one in processes_of_run(job.run_id)]
    assert any(b"WANDB_API_KEY=a-secret-of-the-test" in read(path) for path in environments)
    assert not any(b"a-secret" in read(Path("/proc") / str(one.pid) / "cmdline") for one in every_process())
    files = [path for path in [*tmp_path.rglob("*"), *Path("/dev/shm").glob(".dtrain-*")] if path.is_file()]
    assert files
    assert not [path for path in files if b"a-secret-of-the-test" in read(path)]
    launcher.cancel(handle)


def test_a_project_s_tracked_files_go_along_and_the_run_works_among_them(
    launcher: SshLauncher, ssh_job: NewJob, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    (project / "templates").mkdir(parents=True)
    for name in ("templates/chat.jinja", "untracked.txt", ".env", ".env.local"):
        (project / name).write_text("secret" if name.startswith(".env") else "tracked")
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    subprocess.run(["git", "add", "templates", ".env", ".env.local"], cwd=project, check=True)
    job = ssh_job(LONG, options={"project": True}, working_directory=str(project))
    handle = submitted(launcher, job)
    wait_until(lambda: training(launcher, handle))
    there = Path(handle.data["machines"][0]["base"]) / "runs" / job.run_id / "project"
    assert [str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()] == ["templates/chat.jinja"]
    workers = [one.pid for one in processes_of_run(job.run_id) if b"worker" in read(Path(f"/proc/{one.pid}/cmdline"))]
    assert workers
    assert {os.readlink(f"/proc/{pid}/cwd") for pid in workers} == {str(there)}
    launcher.cancel(handle)
