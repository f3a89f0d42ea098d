"""What a client, a line and a host do to a run: nothing is lost, nothing runs twice, nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dtrain_launchers.ssh import SshLauncher

from dtrain.errors import LauncherRefused, Unreachable
from dtrain.launch.api import Handle, Job
from dtrain.launch.ending import put_aside
from dtrain.launch.process import every_process, processes_of_run
from dtrain.launch.tunnel import known_hosts
from dtrain.paths import RunPaths
from tests.launch.conftest import is_training, left_over, wait_until
from tests.ssh.faults import FaultAt, killed, lost
from tests.ssh.hosts import Host

NewJob = Callable[..., Job]
LONG = 100_000


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> SshLauncher:
    monkeypatch.setattr(SshLauncher, "look_seconds", 0.1)
    return SshLauncher()


def submitted(launcher: SshLauncher, job: Job) -> Handle:
    handle: Handle = launcher.submit(job, launcher.render(job))
    return handle


def found_again(job: Job) -> Handle:
    """What a later client has of a run whose client died before it had a handle."""
    return Handle("ssh", job.run_id, str(job.folder))


def training(launcher: SshLauncher, handle: Handle) -> bool:
    launcher.status(handle)
    return is_training(RunPaths(Path(handle.folder)))


def supervisors(run_id: str) -> int:
    """How many live supervisors the run has, wherever they are; each has a guard, a fork of it."""
    mine = {one.pid: one for one in every_process() if _is_supervisor(one.pid, run_id)}
    return sum(one.parent not in mine for one in mine.values())


def _is_supervisor(pid: int, run_id: str) -> bool:
    line = _read(Path("/proc") / str(pid) / "cmdline")
    return run_id.encode() in line and b"launch.supervise" in line


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("verb", ["hello", "place"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_line_cut_before_the_start_is_a_refusal_and_nothing_runs(
    launcher: SshLauncher, ssh_job: NewJob, monkeypatch: pytest.MonkeyPatch, verb: str, when: str
) -> None:
    job = ssh_job(LONG)
    fault = FaultAt(verb, when, lost).arm(monkeypatch)
    with pytest.raises(LauncherRefused, match="cut by the test"):
        submitted(launcher, job)
    assert fault.hit
    assert left_over(job.run_id) == []
    assert launcher.status(found_again(job)).state == "lost"


def test_a_start_whose_answer_is_lost_is_no_refusal_and_the_run_is_found(
    launcher: SshLauncher, ssh_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ssh_job(LONG)
    fault = FaultAt("start", "after", lost).arm(monkeypatch)
    with pytest.raises(Unreachable):
        submitted(launcher, job)
    assert fault.hit
    handle = found_again(job)
    wait_until(lambda: training(launcher, handle), 30)
    assert submitted(launcher, job).run_id == job.run_id  # a second try finds the first one's run
    assert supervisors(job.run_id) == 1
    launcher.cancel(handle)
    assert launcher.status(handle).state == "interrupted"
    assert left_over(job.run_id) == []


@pytest.mark.parametrize(
    ("verb", "when", "runs"), [("place", "after", False), ("start", "before", False), ("start", "after", True)]
)
def test_a_client_killed_between_intent_and_handle(
    launcher: SshLauncher, ssh_job: NewJob, monkeypatch: pytest.MonkeyPatch, verb: str, when: str, runs: bool
) -> None:
    job = ssh_job(LONG)
    child = os.fork()
    if child == 0:
        FaultAt(verb, when, killed).arm(monkeypatch)
        submitted(SshLauncher(), job)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 137  # it reached the point
    handle = found_again(job)
    assert launcher.status(handle).state == ("running" if runs else "lost")
    again = submitted(launcher, job)
    wait_until(lambda: training(launcher, again), 30)
    assert supervisors(job.run_id) == 1
    launcher.cancel(again)
    assert left_over(job.run_id) == []


def test_a_stop_whose_answer_is_lost_is_asked_again(
    launcher: SshLauncher, ssh_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = submitted(launcher, ssh_job(LONG))
    wait_until(lambda: training(launcher, handle), 30)
    fault = FaultAt("stop", "after", lost).arm(monkeypatch)
    with pytest.raises(Unreachable):
        launcher.cancel(handle)
    launcher.cancel(handle)
    launcher.cancel(handle)
    assert fault.asked.count("stop") == 1 or fault.hit
    assert launcher.status(handle).state == "interrupted"
    assert left_over(handle.run_id) == []


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
    wait_until(lambda: launcher.status(handle).state == "done", 30)


def test_a_cut_link_is_not_the_end_of_a_run(launcher: SshLauncher, ssh_job: NewJob, hosts: list[Host]) -> None:
    if hosts[0].namespace is None:
        pytest.skip("no network namespaces: no link to cut")
    handle = submitted(launcher, ssh_job(LONG, options={"connect_seconds": 1}))
    wait_until(lambda: training(launcher, handle), 30)
    before = len(RunPaths(Path(handle.folder)).metrics.read_text().splitlines())
    hosts[0].cut()
    try:
        other = SshLauncher()  # a line that was open would hang until its time is over
        started = time.monotonic()
        status = other.status(handle)
        assert time.monotonic() - started < 10
    finally:
        hosts[0].mend()
    assert status.state == "running"
    assert "cannot be reached" in status.reason
    assert "last seen" in status.reason
    wait_until(lambda: "cannot" not in other.status(handle).reason, 20)
    wait_until(lambda: len(RunPaths(Path(handle.folder)).metrics.read_text().splitlines()) > before, 20)
    other.cancel(handle)
    assert other.status(handle).state == "interrupted"
    steps = [json.loads(line)["step"] for line in RunPaths(Path(handle.folder)).metrics.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))


def test_a_run_outlives_its_client_and_its_session(launcher: SshLauncher, ssh_job: NewJob, hosts: list[Host]) -> None:
    handle = submitted(launcher, ssh_job(LONG))
    hosts[0].down()  # every session of sshd is killed
    hosts[0].up()
    other = SshLauncher()
    wait_until(lambda: training(other, handle), 30)
    other.cancel(handle)
    assert left_over(handle.run_id) == []


def test_a_host_that_lost_its_power_is_told_as_lost_and_goes_on_after_a_resume(
    launcher: SshLauncher, ssh_job: NewJob, hosts: list[Host]
) -> None:
    if hosts[0].namespace is None:
        pytest.skip("no namespaces: no power to cut")
    job = ssh_job(LONG)
    handle = submitted(launcher, job)
    wait_until(lambda: training(launcher, handle), 30)
    hosts[0].power_off()
    hosts[0].up()
    wait_until(lambda: launcher.status(handle).state == "lost", 20)
    assert left_over(job.run_id) == []
    submitted(launcher, job)
    wait_until(lambda: launcher.status(handle).state == "running", 20)
    launcher.cancel(handle)


def test_a_resume_goes_on_and_a_late_duplicate_of_the_first_submit_does_not(
    launcher: SshLauncher, ssh_job: NewJob
) -> None:
    job = ssh_job(LONG)
    handle = submitted(launcher, job)
    wait_until(lambda: training(launcher, handle), 30)
    launcher.cancel(handle)
    paths = RunPaths(job.folder)
    reached = json.loads(paths.exit.read_text())["step"]
    put_aside(paths)  # as `dtrain resume` does
    submitted(launcher, job)
    wait_until(lambda: launcher.status(handle).state == "running" and paths.state.exists(), 30)
    wait_until(lambda: launcher.status(handle) and json.loads(paths.state.read_text())["step"] > reached, 30)
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


def test_a_full_disk_is_refused_and_leaves_nothing_running(
    launcher: SshLauncher, ssh_job: NewJob, hosts: list[Host], options: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(small)], check=True)
    try:
        hosts[0].power_off()  # its processes see the mount only when they start after it
        hosts[0].up()
        told = options(hosts[0])
        told["hosts"][0]["base"] = str(small)
        job = ssh_job(LONG, options=told, config={"chat_template_jinja": "x" * 40_000})
        with pytest.raises(LauncherRefused, match="No space left"):
            submitted(launcher, job)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
    assert left_over(job.run_id) == []


def test_secrets_are_in_no_file_and_no_command_line(
    launcher: SshLauncher, ssh_job: NewJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-of-the-test")
    job = ssh_job(LONG)
    assert "a-secret-of-the-test" not in str(launcher.render(job))
    handle = submitted(launcher, job)
    wait_until(lambda: training(launcher, handle), 30)
    environments = [(Path("/proc") / str(one.pid) / "environ") for one in processes_of_run(job.run_id)]
    assert any(b"WANDB_API_KEY=a-secret-of-the-test" in _read(path) for path in environments)
    assert not any(b"a-secret" in _read(Path("/proc") / str(one.pid) / "cmdline") for one in every_process())
    files = [path for path in [*tmp_path.rglob("*"), *Path("/dev/shm").glob(".dtrain-*")] if path.is_file()]
    assert files
    assert not [path for path in files if b"a-secret-of-the-test" in _read(path)]
    launcher.cancel(handle)
