"""The table of faults on this machine, and the page that shows it."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dtrain_launchers.local import LocalLauncher

from dtrain import assets
from dtrain.launch import here
from dtrain.launch.api import Handle, Job, Launcher
from dtrain.paths import RunPaths
from tests.launch.conftest import is_training, left_over
from tests.launch.fault_table import CASES, Case, Injected, cases_of, keep_the_promise, page
from tests.launch.lives import supervisors
from tests.ssh.hosts import full_disk
from tests.waiting import wait_until


def test_the_page_shows_the_table() -> None:
    assert (assets.root() / "docs/faults.md").read_text(encoding="utf-8") == page(), (
        "python -m tests.launch.fault_table > docs/faults.md"
    )


def test_every_call_has_a_fault_and_no_row_stands_twice() -> None:
    assert len(CASES) == len(set(CASES)) >= 30
    calls = {place: {case.call for case in cases_of(place)} for place in ("local", "slurm", "ssh")}
    assert {"spawn", "write", "signal"} <= calls["local"]
    assert {"squeue", "sbatch", "sacct", "scontrol requeue", "scancel"} <= calls["slurm"]
    assert {"place", "gate", "start", "look", "results", "meeting", "link", "reach", "stop", "sftp"} <= calls["ssh"]


class Local:
    """This machine, with stand-ins for the ranks."""

    def __init__(self, make_job: Callable[..., Job], patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.make_job = make_job
        self.patch = patch
        self.folder = folder

    def job(self, steps: int, case: Case) -> Job:
        self.patch.setenv("STAND_IN_STEPS", str(steps))
        return self.make_job()

    def again(self, job: Job) -> Job:
        return job

    def client(self) -> Launcher:
        made: Launcher = LocalLauncher()
        return made

    def arm(self, fault: Injected, patch: pytest.MonkeyPatch) -> Launcher:
        spawn, kill = here._spawn, os.kill

        def no_process(*_: object) -> int:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

        def spawned(*words: Any) -> Any:
            return fault.at("spawn", lambda: spawn(*words), lambda: no_process(), lambda: no_process())

        def killed(pid: int, number: int) -> Any:
            call = "signal" if number == signal.SIGTERM else "look"
            return fault.at(call, lambda: kill(pid, number), lambda: None, lambda: None)

        patch.setattr(here, "_spawn", spawned)
        patch.setattr(os, "kill", killed)
        return self.client()

    @contextmanager
    def full_disk(self, job: Job) -> Iterator[Job]:
        if os.geteuid() != 0:
            pytest.skip("NO DISK WAS FILLED: only root may mount one")
        with full_disk(self.folder / "disk") as disk:
            on_it = replace(job, folder=disk / "run")
            RunPaths(on_it.folder).run.mkdir(parents=True)
            yield on_it
            assert left_over(job.run_id) == []

    def wait_training(self, launcher: Launcher, handle: Handle) -> None:
        wait_until(lambda: is_training(RunPaths(Path(handle.folder))))

    def lives(self, job: Job) -> int:
        return supervisors(job.run_id)

    def left(self, job: Job) -> list[Any]:
        return left_over(job.run_id)


@pytest.mark.parametrize("case", cases_of("local"), ids=str)
def test_the_promise(
    case: Case, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stand_ins: None
) -> None:
    keep_the_promise(case, Local(make_job, monkeypatch, tmp_path), monkeypatch, tmp_path / "asked")
