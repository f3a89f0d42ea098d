"""A fault at every call to SLURM: never two jobs for one run, none lost, none left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import pytest
from dtrain_launchers.slurm import SlurmLauncher
from dtrain_launchers.slurm_queue import Said, ThisMachine

from dtrain.errors import DtrainError, LauncherRefused, RunFailed
from dtrain.launch.api import Handle, Job, Launcher
from dtrain.paths import RunPaths
from tests.slurm.cluster import Cluster, run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("hosts")]


class Killed(BaseException):
    """The client is gone: nothing of it runs any more."""


@dataclass(frozen=True, eq=False)
class Faulty:
    """SLURM's commands, of which one goes wrong once. `log` is what was asked, up to and after that."""

    command: str = ""
    kind: str = ""
    log: list[str] = field(default_factory=list)
    strikes: list[str] = field(default_factory=list)

    @property
    def struck(self) -> bool:
        return self.strikes != []

    def has(self, command: str) -> bool:
        return bool(ThisMachine().has(command))

    def run(self, command: Sequence[str], text: str = "") -> Said:
        self.log.append(command[0])
        if command[0] != self.command or self.struck:
            return ThisMachine().run(command, text)
        self.strikes.append(self.kind)
        if self.kind in ("killed after", "answer lost"):
            ThisMachine().run(command, text)
        if self.kind.startswith("killed"):
            raise Killed
        if self.kind == "refused":
            return Said(1, "", f"{command[0]}: error: Unable to contact slurm controller (connect failure)")
        return Said(124, "", f"{command[0]} did not answer within 30 s")


KINDS = ("killed before", "killed after", "answer lost", "no answer", "refused")


@pytest.fixture
def job(cluster: Cluster, make_job: Callable[..., Job], stand_ins: None) -> Iterator[Job]:
    """Held in the queue, so that nothing runs."""
    made = make_job(options={"extra": ["#SBATCH --hold"]})
    yield made
    assert queued(cluster, made) == []


def queued(cluster: Cluster, job: Job) -> list[str]:
    return cluster("squeue", "--noheader", f"--name=dtrain-{job.run_id}", "--format=%i").split()


def submit(launcher: Launcher, job: Job) -> Handle:
    return launcher.submit(job, launcher.render(job))


@pytest.mark.parametrize(("command", "kind"), list(product(("squeue", "sbatch"), KINDS)))
def test_submitting(cluster: Cluster, job: Job, command: str, kind: str) -> None:
    slurm = Faulty(command, kind)
    with suppress(Killed, LauncherRefused, RunFailed):
        submit(SlurmLauncher(slurm), job)
    assert slurm.struck
    assert slurm.log[-1] in ("squeue", command)
    assert len(queued(cluster, job)) <= 1

    another = SlurmLauncher()
    handle = submit(another, job)
    assert queued(cluster, job) == [handle.data["job_id"]]
    assert another.status(Handle("slurm", job.run_id, str(job.folder))).state == "pending"
    another.cancel(Handle("slurm", job.run_id, str(job.folder)))
    assert another.status(handle).state == "interrupted"


@pytest.mark.parametrize(("command", "kind"), list(product(("squeue", "scancel"), KINDS)))
def test_cancelling(cluster: Cluster, job: Job, command: str, kind: str) -> None:
    handle = submit(SlurmLauncher(), job)
    slurm = Faulty(command, kind)
    with suppress(Killed, LauncherRefused):
        SlurmLauncher(slurm).cancel(handle)
    assert slurm.struck
    assert command in slurm.log
    SlurmLauncher().cancel(handle)
    assert SlurmLauncher().status(handle).state == "interrupted"


@pytest.mark.parametrize("kind", ["no answer", "refused"])
def test_a_controller_that_does_not_answer_ends_no_run(cluster: Cluster, job: Job, kind: str) -> None:
    handle = submit(SlurmLauncher(), job)
    slurm = Faulty("squeue", kind)
    status = SlurmLauncher(slurm).status(handle)
    assert slurm.struck
    assert status.state == "pending"
    assert "does not answer" in status.reason
    SlurmLauncher().cancel(handle)


def test_no_answer_at_all_keeps_the_intent(cluster: Cluster, job: Job) -> None:
    """Then it is not known whether the job was taken, which is no refusal."""

    @dataclass(frozen=True)
    class Silent:
        def has(self, command: str) -> bool:
            return True

        def run(self, command: Sequence[str], text: str = "") -> Said:
            asked.append(command[0])
            return ThisMachine().run(command) if asked == ["squeue"] else Said(124, "", "no answer")

    asked: list[str] = []
    with pytest.raises(RunFailed, match="not known whether the job was taken"):
        submit(SlurmLauncher(Silent()), job)
    assert asked[:3] == ["squeue", "sbatch", "squeue"]


def test_a_full_disk_is_refused_and_submits_nothing(cluster: Cluster, job: Job, tmp_path: Path) -> None:
    disk = tmp_path / "small"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64k", "none", disk)
    try:
        small = Job(job.run_id, job.name, disk / "run", 1, 2, "cpu", options=job.options)
        RunPaths(small.folder).logs.mkdir(parents=True)
        with suppress(OSError):
            (disk / "full").write_bytes(b"x" * (1 << 20))
        with pytest.raises(LauncherRefused, match="No space left"):
            submit(SlurmLauncher(), small)
    finally:
        run("umount", disk)


def test_a_job_that_slurm_forgot_is_lost_and_says_so(cluster: Cluster, job: Job) -> None:
    handle = Handle("slurm", job.run_id, str(job.folder), {"job_id": "999999"})
    status = SlurmLauncher().status(handle)
    assert status.state == "lost"
    assert "999999" in status.reason
    SlurmLauncher().cancel(handle)


def test_errors_are_dtrain_s_own(cluster: Cluster, job: Job) -> None:
    for kind in ("no answer", "refused"):
        with pytest.raises(DtrainError) as caught:
            SlurmLauncher(Faulty("squeue", kind)).cancel(Handle("slurm", job.run_id, str(job.folder)))
        assert caught.value.exit_code == 5
        assert caught.value.fix
