"""The table of faults on a real cluster: from its login node, and from elsewhere over SSH."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from dtrain_launchers.slurm import SlurmLauncher
from dtrain_launchers.slurm_queue import Said, ThisMachine

from dtrain.errors import RunFailed
from dtrain.launch.api import Handle, Job, Launcher
from dtrain.paths import RunPaths
from tests.launch.conftest import is_training, left_over
from tests.launch.fault_table import Case, Injected, cases_of, keep_the_promise
from tests.slurm.cluster import Cluster
from tests.ssh.faults import faulty_tunnel
from tests.ssh.hosts import full_disk
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]
HELD = {"extra": ["#SBATCH --hold"]}
"""Most rows need no process: the job waits."""
REFUSES_TO_REQUEUE = {"setup": ['scontrol() { [ "$1" != requeue ] && command scontrol "$@"; }'], "time": "2"}


@dataclass(frozen=True, eq=False)
class Faulty:
    """SLURM's commands, of which one goes wrong."""

    fault: Injected

    def has(self, command: str) -> bool:
        return bool(ThisMachine().has(command))

    def run(self, command: Sequence[str], text: str = "") -> Said:
        said: Said = self.fault.at(
            command[0], lambda: ThisMachine().run(command, text),
            lambda: Said(124, "", f"{command[0]} did not answer within 30 s"),
            lambda: Said(1, "", f"{command[0]}: error: Unable to contact slurm controller (connect failure)"),
        )  # fmt: skip
        return said


class Slurm:
    """A job on the cluster."""

    def __init__(self, cluster: Cluster, new_job: Callable[..., Job], folder: Path) -> None:
        self.cluster = cluster
        self.new_job = new_job
        self.folder = folder

    def job(self, steps: int, case: Case) -> Job:
        runs = case.fault == "of a finished run" or case.during == "fetch" or case.fault == "client killed after"
        return self.new_job(steps, options={} if runs and case.during != "submit" else HELD)

    def again(self, job: Job) -> Job:
        return job

    def client(self) -> Launcher:
        made: Launcher = SlurmLauncher()
        return made

    def arm(self, fault: Injected, patch: pytest.MonkeyPatch) -> Launcher:
        made: Launcher = SlurmLauncher(Faulty(fault))
        return made

    @contextmanager
    def full_disk(self, job: Job) -> Iterator[Job]:
        with full_disk(self.folder / "disk") as disk:
            on_it = replace(job, folder=disk / "run")
            RunPaths(on_it.folder).logs.mkdir(parents=True)
            yield on_it
            assert self.left(job) == []

    def wait_training(self, launcher: Launcher, handle: Handle) -> None:
        """Or waiting, where it is held."""
        paths = RunPaths(Path(handle.folder))
        held = "--hold" in self.script(handle)
        wait_until(lambda: launcher.status(handle).state == "pending" if held else self.is_on(launcher, handle, paths))

    def is_on(self, launcher: Launcher, handle: Handle, paths: RunPaths) -> bool:
        return launcher.status(handle).state != "pending" and is_training(paths)

    def script(self, handle: Handle) -> str:
        return RunPaths(Path(handle.folder)).job_script.read_text()

    def lives(self, job: Job) -> int:
        return len(self.queued(job))

    def left(self, job: Job) -> list[Any]:
        return [*left_over(job.run_id), *self.queued(job)]

    def queued(self, job: Job) -> list[str]:
        return self.cluster("squeue", "--noheader", f"--name=dtrain-{job.run_id}", "--format=%i").split()


class FromElsewhere(Slurm):
    """The same over SSH to a login node."""

    def arm(self, fault: Injected, patch: pytest.MonkeyPatch) -> Launcher:
        faulty_tunnel(fault, patch)
        return self.client()

    @contextmanager
    def full_disk(self, job: Job) -> Iterator[Job]:
        there = {**job.options["login"], "base": str(self.cluster.base / "full disk")}
        yield replace(job, options={**job.options, "login": there}, config={"chat_template_jinja": "x" * 40_000})
        assert self.left(job) == []

    def script(self, handle: Handle) -> str:
        there = RunPaths(Path(handle.data["machines"][0]["base"]) / "runs" / handle.run_id)
        return there.job_script.read_text()


@pytest.fixture
def job_here(make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, stand_ins: None) -> Callable[..., Job]:
    def new(steps: int, **more: Any) -> Job:
        monkeypatch.setenv("STAND_IN_STEPS", str(steps))
        return make_job(**more)

    return new


@pytest.mark.parametrize(
    "case", [case for case in cases_of("slurm") if case.call not in ("sacct", "scontrol requeue")], ids=str
)
def test_the_promise(
    case: Case, cluster: Cluster, job_here: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keep_the_promise(case, Slurm(cluster, job_here, tmp_path), monkeypatch, tmp_path / "asked")


@pytest.mark.parametrize("case", [case for case in cases_of("slurm") if case.call == "sacct"], ids=str)
def test_a_job_that_slurm_forgot(case: Case, cluster: Cluster, job_here: Callable[..., Job], tmp_path: Path) -> None:
    """squeue knows it no more, and sacct does not answer: lost, with the job's number."""
    job = job_here(5)
    fault = Injected(case.call, case.fault, tmp_path / "asked")
    handle = Handle("slurm", job.run_id, str(job.folder), {"job_id": "999999"})
    status = SlurmLauncher(Faulty(fault)).status(handle)
    assert fault.asked == ["squeue", "sacct"]
    assert (status.state, "999999" in status.reason) == (case.finds, True)
    SlurmLauncher().cancel(handle)


@pytest.mark.parametrize("case", [case for case in cases_of("slurm") if case.call == "scontrol requeue"], ids=str)
def test_a_requeue_that_slurm_refuses(
    case: Case, cluster: Cluster, job_here: Callable[..., Job], tmp_path: Path
) -> None:
    """At its time limit the run saved; it says why it did not go on, and can be resumed."""
    place = Slurm(cluster, job_here, tmp_path)
    job = job_here(100_000, options=REFUSES_TO_REQUEUE)
    launcher = place.client()
    handle = launcher.submit(job, launcher.render(job))
    place.wait_training(launcher, handle)
    cluster("scancel", "--batch", "--signal=USR1", handle.data["job_id"])
    wait_until(lambda: launcher.status(handle).state == case.finds)
    assert "SLURM refused to requeue it" in launcher.status(handle).reason
    assert "requeue 1 of at most" in RunPaths(job.folder).job_log.read_text()
    assert list(RunPaths(job.folder).checkpoints.glob("step-*"))
    wait_until(lambda: place.left(job) == [])


@pytest.mark.parametrize("case", cases_of("slurm login"), ids=str)
def test_the_promise_from_elsewhere(
    case: Case, whole_cluster: Cluster, login_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keep_the_promise(case, FromElsewhere(whole_cluster, login_job, tmp_path), monkeypatch, tmp_path / "asked")


def test_no_answer_at_all_keeps_the_intent(cluster: Cluster, job_here: Callable[..., Job]) -> None:
    """Then it is not known whether the job was taken, which is no refusal."""

    @dataclass(frozen=True)
    class Silent:
        def has(self, command: str) -> bool:
            return True

        def run(self, command: Sequence[str], text: str = "") -> Said:
            asked.append(command[0])
            return ThisMachine().run(command) if asked == ["squeue"] else Said(124, "", "no answer")

    asked: list[str] = []
    job = job_here(5)
    launcher = SlurmLauncher(Silent())
    with pytest.raises(RunFailed, match="not known whether the job was taken"):
        launcher.submit(job, launcher.render(job))
    assert asked[:3] == ["squeue", "sbatch", "squeue"]
