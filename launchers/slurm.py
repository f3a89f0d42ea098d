"""A SLURM cluster: one batch job a run, one supervisor a node, requeued until done.

From one of its login nodes, or (`launchers.slurm.login`) from anywhere that can log in to one: then this launcher works
there, and what is here asks it (`slurm_login`).
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dtrain.errors import PartMissing
from dtrain.launch import bundle, shared
from dtrain.launch.api import Handle, Job, Rendered, Status
from dtrain.paths import RunPaths

from . import slurm_check, slurm_login
from .slurm_job import ClusterRun
from .slurm_login import LoginRun
from .slurm_options import SlurmOptions, read_options
from .slurm_queue import Cluster, ThisMachine
from .slurm_script import rendered, script

NAME = "slurm"
ASK_AGAIN_SECONDS = 2.0
"""How often a client that watches asks the controller; sites ask for restraint."""


class SlurmLauncher:
    name = NAME
    asks_for_files = True

    def __init__(self, cluster: Cluster | None = None) -> None:
        self.cluster = cluster or ThisMachine()
        self.logins = slurm_login.Logins()
        self._told: dict[str, tuple[float, Status]] = {}
        """When a run was asked about last, and the answer: a screen asks ten times a second."""

    def check(self, job: Job | None = None) -> list[str]:
        options = read_options(job.options) if job is not None else SlurmOptions()
        if job is not None and options.login is not None:
            return slurm_login.problems(self.logins, job, options, options.login)
        missing = [part for part in ("sbatch", "squeue", "scancel", "scontrol") if not self.cluster.has(part)]
        if missing:
            return [
                f"{missing[0]} is not on PATH: run dtrain on a login node of the cluster, or `module load slurm`, or "
                "say where one is: --set launchers.slurm.login=user@host"
            ]
        if job is None:
            return []
        if importlib.util.find_spec("torch") is None:
            raise PartMissing.of("torch", "train", "training on this cluster")
        lacking = [f"{path} is not here" for path in bundle.expected_there(job.config)]
        return lacking + slurm_check.problems(self.cluster, job, options, script(job, options))

    def render(self, job: Job) -> Rendered:
        options = read_options(job.options)
        return rendered(job, options) if options.login is None else slurm_login.rendered(job, options, options.login)

    def submit(self, job: Job, rendered: Rendered) -> Handle:
        options = read_options(job.options)
        self._told.pop(job.run_id, None)
        if options.login is not None:
            return slurm_login.submit(self.logins, job, options, options.login)
        number = ClusterRun(self.cluster, job.run_id, RunPaths(job.folder)).submit(job, rendered)
        return Handle(NAME, job.run_id, str(job.folder), {"job_id": number} if number else {})

    def status(self, handle: Handle) -> Status:
        """By exit.json, else by what was asked a moment ago, else by asking."""
        ended = shared.ended(RunPaths(Path(handle.folder)))
        if ended is not None:
            return ended
        asked, last = self._told.get(handle.run_id, (0.0, None))
        if last is None or time.monotonic() - asked > ASK_AGAIN_SECONDS:
            last = self._run(handle).status()
            self._told[handle.run_id] = (time.monotonic(), last)
        return last

    def logs(self, handle: Handle, follow: bool) -> Iterator[str]:
        self.status(handle)
        paths = RunPaths(Path(handle.folder))
        return shared.logs(paths, follow, lambda: self.status(handle).state not in ("running", "pending"))

    def cancel(self, handle: Handle) -> None:
        self._told.pop(handle.run_id, None)
        self._run(handle).cancel()

    def kill(self, handle: Handle) -> None:
        self._told.pop(handle.run_id, None)
        self._run(handle).kill()

    def fetch(self, handle: Handle, checkpoints: str | None, say: Callable[[str], None]) -> tuple[int, int]:
        """Of a run on this cluster nothing: its folder is the run's own."""
        run = self._run(handle)
        return run.fetch(checkpoints, say) if isinstance(run, LoginRun) else (0, 0)

    def _run(self, handle: Handle) -> ClusterRun | LoginRun:
        paths = RunPaths(Path(handle.folder))
        elsewhere = slurm_login.found(handle, paths, self.logins)
        return elsewhere or ClusterRun(self.cluster, handle.run_id, paths, handle.data.get("job_id"))
