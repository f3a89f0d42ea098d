"""A SLURM cluster, from one of its login nodes: one batch job a run, one supervisor a node, requeued until done."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from dtrain.errors import LauncherRefused, PartMissing, RunFailed
from dtrain.launch import seeds, shared
from dtrain.launch.api import Handle, Job, Rendered, Status
from dtrain.launch.spec import spec_for
from dtrain.paths import RunPaths

from . import slurm_check
from .slurm_options import SlurmOptions, read_options
from .slurm_queue import (
    CAN_GO_ON,
    Cluster,
    QueuedJob,
    ThisMachine,
    accounted_state,
    jobs_named,
    last_line,
)
from .slurm_script import job_name, script, signal_margin_seconds

NAME = "slurm"
ASK_AGAIN_SECONDS = 2.0
"""How often a client that watches asks the controller; sites ask for restraint."""
POLL_SECONDS = 0.2
GRACE_MARGIN_SECONDS = 30.0
"""Beyond the ranks' own time to save, before a job that was asked to stop is cancelled."""
GONE_SECONDS = 90.0
"""A cancelled job is killed after KillWait (30 s by default); a node may take a moment more to say so."""
SETTLE_SECONDS = 2.0
"""After a submit that failed without a clear answer, until the controller would show the job."""


class SlurmLauncher:
    name = NAME

    def __init__(self, cluster: Cluster | None = None) -> None:
        self.cluster = cluster or ThisMachine()

    def check(self, job: Job | None = None) -> list[str]:
        missing = [part for part in ("sbatch", "squeue", "scancel", "scontrol") if not self.cluster.has(part)]
        if missing:
            return [f"{missing[0]} is not on PATH: run dtrain on a login node of the cluster, or `module load slurm`"]
        if job is None:
            return []
        if importlib.util.find_spec("torch") is None:
            raise PartMissing.of("torch", "train", "training on this cluster")
        return slurm_check.problems(self.cluster, job, read_options(job.options), script_of(job))

    def render(self, job: Job) -> Rendered:
        options = read_options(job.options)
        paths = RunPaths(job.folder)
        grace = options.grace_seconds if options.grace_seconds is not None else signal_margin_seconds(job, options)
        spec = spec_for(job, grace_seconds=grace, env=options.env)
        files = {str(paths.launch): spec.as_text(), str(paths.job_script): script(job, options)}
        for seed in options.seeds:
            files |= seeds.member_files(job, seed, spec)
        return Rendered(
            files=files,
            commands=(("sbatch", "--parsable", str(paths.job_script)),),
            notes=_notes(job, options),
        )

    def submit(self, job: Job, rendered: Rendered) -> Handle:
        paths = RunPaths(job.folder)
        with shared.one_at_a_time(paths):
            if shared.ended(paths) is not None:
                return _handle(job, shared.job_told(paths).get("job_id"))
            found = self._alive(job.run_id)
            number = found[0].id if found else self._sbatch(job, rendered)
            number = number.partition("_")[0]
            shared.note_job(paths, {"launcher": self.name, "job_id": number})
        return _handle(job, number)

    def status(self, handle: Handle) -> Status:
        paths = RunPaths(Path(handle.folder))
        return shared.ended(paths) or self._asked(handle, paths)

    def logs(self, handle: Handle, follow: bool) -> Iterator[str]:
        paths = RunPaths(Path(handle.folder))
        return shared.logs(paths, follow, lambda: self.status(handle).state not in ("running", "pending"))

    def cancel(self, handle: Handle) -> None:
        paths = RunPaths(Path(handle.folder))
        alive = self._alive(handle.run_id)
        waiting = [job for job in alive if job.is_pending]
        running = [job for job in alive if not job.is_pending]
        self._scancel(waiting)
        self._scancel(running, "--batch", f"--signal={_stop_signal(paths)}")
        if running:
            self._wait_until_gone(handle, shared.grace_seconds(paths) + GRACE_MARGIN_SECONDS)
        self._end(handle, "cancelled")

    def kill(self, handle: Handle) -> None:
        self._scancel(self._alive(handle.run_id), "--full", "--signal=KILL")
        self._end(handle, "killed on request, without saving,")

    # --- SLURM --------------------------------------------------------------------------------------------------------

    def _alive(self, run_id: str) -> list[QueuedJob]:
        return [job for job in jobs_named(self.cluster, job_name(run_id)) if not job.is_over]

    def _sbatch(self, job: Job, rendered: Rendered) -> str:
        """The job's id. What sbatch refused is LauncherRefused; where it is not known, RunFailed keeps the intent."""
        shared.write_files(rendered.files)
        seeds.begin_again(RunPaths(job.folder))
        said = self.cluster.run(rendered.commands[0])
        if said.code == 0:
            return said.out.strip().partition(";")[0]  # "123;cluster"
        words = last_line(said.err)
        try:
            found = self._taken_all_the_same(job.run_id)
        except LauncherRefused:
            raise RunFailed(
                f"sbatch failed ({words}), and SLURM does not answer: it is not known whether the job was taken",
                fix=f"dtrain status {job.run_id} finds it when SLURM answers again",
            ) from None
        if found:
            return found[0].id
        raise LauncherRefused(f"sbatch refused the job: {words}", file=rendered.commands[0][-1])

    def _taken_all_the_same(self, run_id: str) -> list[QueuedJob]:
        """An answer may be lost after the job was taken."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            found = self._alive(run_id)
            if found or time.monotonic() > deadline:
                return found
            time.sleep(POLL_SECONDS)

    def _asked(self, handle: Handle, paths: RunPaths) -> Status:
        try:
            jobs = _asked_lately(self.cluster, job_name(handle.run_id), int(time.monotonic() / ASK_AGAIN_SECONDS))
        except LauncherRefused as error:
            return Status("running" if shared.has_begun(paths) else "pending", None, error.message)
        ended = shared.ended(paths)  # it may have ended between the two looks
        if ended is not None:
            return ended
        if jobs:
            return _status_of(jobs, paths)
        number = handle.data.get("job_id") or shared.job_told(paths).get("job_id")
        state = accounted_state(self.cluster, number) if number else None
        return _over(state, paths) if state else Status("lost", None, _lost(number))

    def _scancel(self, jobs: list[QueuedJob], *flags: str) -> None:
        """A job that is gone by now is as good as cancelled: scancel's own complaint says nothing more."""
        if jobs:
            self.cluster.run(["scancel", *flags, *(job.id for job in jobs)])

    def _wait_until_gone(self, handle: Handle, patience_seconds: float) -> list[QueuedJob]:
        deadline = time.monotonic() + patience_seconds
        while True:
            alive = self._alive(handle.run_id)
            if not alive or time.monotonic() > deadline:
                return alive
            time.sleep(POLL_SECONDS)

    def _end(self, handle: Handle, how: str) -> None:
        """Whatever is left goes; what could not write its exit.json gets one."""
        paths = RunPaths(Path(handle.folder))
        known = jobs_named(self.cluster, job_name(handle.run_id))
        self._scancel([job for job in known if not job.is_over])
        left = self._wait_until_gone(handle, GONE_SECONDS)
        if left:
            raise LauncherRefused(
                f"job {left[0].id} was cancelled and is still {left[0].state} on {left[0].nodes}",
                fix=f"look at it: scontrol show job {left[0].id}",
            )
        if known or shared.job_told(paths):
            shared.note_interrupted(paths, how)


@lru_cache(maxsize=64)
def _asked_lately(cluster: Cluster, name: str, moment: int) -> tuple[QueuedJob, ...]:
    """What squeue said in this moment of ASK_AGAIN_SECONDS: a screen asks ten times a second."""
    return tuple(jobs_named(cluster, name))


def _status_of(jobs: tuple[QueuedJob, ...], paths: RunPaths) -> Status:
    running = [job for job in jobs if not job.is_over and not job.is_pending]
    job = running[0] if running else None
    if job is not None and "_" in job.id:
        return Status("running", None, f"{len(running)} of {len(seeds.members(paths))} seeds at once; job {job.id}")
    if job is not None:
        return Status("running", None, f"{shared.stage(paths)}; job {job.id} on {job.nodes}")
    job = next((job for job in jobs if job.is_pending), jobs[-1])
    if job.is_pending:
        again = f"goes on after step {shared.step_reached(paths)}; " if shared.has_begun(paths) else ""
        return Status("pending", None, f"{again}job {job.id} is {job.waits_for()}")
    return _over(job.state, paths)


def _over(state: str, paths: RunPaths) -> Status:
    """A job that ended without an exit.json: SLURM's word is all there is."""
    if state in CAN_GO_ON:
        return Status("interrupted", 75, f"SLURM ended the job ({state}) at step {shared.step_reached(paths)}")
    if state == "COMPLETED":
        return Status("lost", None, "SLURM says COMPLETED, and the run left no exit.json")
    said = shared.last_words(paths)
    return Status("failed", 1, f"SLURM says {state}" + (f": {said}" if said else ""))


def _lost(number: str | None) -> str:
    who = f"job {number}" if number else "a job of this run"
    return f"SLURM does not know {who} any more, and the run left no exit.json"


def _handle(job: Job, number: str | None) -> Handle:
    return Handle(NAME, job.run_id, str(job.folder), {"job_id": number} if number else {})


def _stop_signal(paths: RunPaths) -> str:
    """The signal that the run's own script listens to."""
    text = paths.job_script.read_text(encoding="utf-8") if paths.job_script.exists() else ""
    return "USR1" if "--signal=B:USR2@" in text else "USR2"


def script_of(job: Job) -> str:
    return script(job, read_options(job.options))


def _notes(job: Job, options: SlurmOptions) -> tuple[str, ...]:
    where = "a preflight names a node that cannot reach the others; the network interface is the route's to the first"
    life = f"at {options.signal}, {signal_margin_seconds(job, options)} s before the limit, it saves and is requeued"
    return ((where,) if job.nodes > 1 else ()) + ((life,) if options.max_requeues else ())
