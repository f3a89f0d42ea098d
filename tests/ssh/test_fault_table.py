"""The table of faults over real sshds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dtrain_launchers.ssh import SshLauncher

from dtrain.launch import far
from dtrain.launch.api import Handle, Job, Launcher
from dtrain.paths import RunPaths
from tests.launch.conftest import is_training, left_over
from tests.launch.fault_table import Case, Injected, cases_of, keep_the_promise
from tests.launch.lives import supervisors
from tests.ssh.faults import faulty_tunnel
from tests.ssh.hosts import Host
from tests.waiting import wait_until

TOGETHER = ("meeting", "link", "reach")
"""What is only asked of several machines."""


class Ssh:
    """One host or two, with stand-ins for the ranks."""

    def __init__(self, hosts: list[Host], options: Callable[..., dict[str, Any]], new_job: Callable[..., Job]) -> None:
        self.hosts = hosts
        self.options = options
        self.new_job = new_job

    def job(self, steps: int, case: Case) -> Job:
        used = self.hosts if case.call in TOGETHER else self.hosts[:1]
        told = {"gate": case.call in ("gate", "reach"), "env": {"STAND_IN_STEPS": str(steps)}}
        job = self.new_job(steps, options={**self.options(*used), **told})
        rows = Path(job.folder).parent / "rows.jsonl"
        rows.write_text("{}\n")
        config = {"datasets": [{"path": str(rows)}]} if case.call == "files" else {}
        return replace(job, nodes=len(used), config=config)

    def again(self, job: Job) -> Job:
        return replace(job, options={**job.options, "gate": False})

    def client(self) -> Launcher:
        launcher = SshLauncher()
        launcher.look_seconds = 0.1
        made: Launcher = launcher
        return made

    def arm(self, fault: Injected, patch: pytest.MonkeyPatch) -> Launcher:
        faulty_tunnel(fault, patch)
        return self.client()

    @contextmanager
    def full_disk(self, job: Job) -> Iterator[Job]:
        on_it = {**job.options["hosts"][0], "base": str(self.hosts[0].full_disk)}
        more = {"chat_template_jinja": "x" * 40_000}
        yield replace(job, options={**job.options, "hosts": [on_it]}, config=more)
        assert left_over(job.run_id) == []

    def wait_training(self, launcher: Launcher, handle: Handle) -> None:
        paths = RunPaths(Path(handle.folder))
        wait_until(lambda: launcher.status(handle) and is_training(paths))

    def lives(self, job: Job) -> int:
        return supervisors(job.run_id) if job.nodes == 1 else (supervisors(job.run_id) + 1) // job.nodes

    def left(self, job: Job) -> list[Any]:
        return left_over(job.run_id)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases_of("ssh"), ids=str)
def test_the_promise(
    case: Case, hosts: list[Host], options: Callable[..., dict[str, Any]], ssh_job: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(far, "PARTING_SECONDS", 0.2)  # stand-ins do not tell those of another host to save
    keep_the_promise(case, Ssh(hosts, options, ssh_job), monkeypatch, tmp_path / "asked")
