"""One run on a SLURM cluster whose folder and commands are here: its job, found by its name, and its life."""

from __future__ import annotations

import time

from dtrain.errors import LauncherRefused, RunFailed
from dtrain.launch import seeds, shared
from dtrain.launch.api import Job, Rendered, Status
from dtrain.paths import RunPaths

from .slurm_queue import CAN_GO_ON, Cluster, QueuedJob, accounted_state, jobs_named, last_line
from .slurm_script import job_name

POLL_SECONDS = 0.2
GRACE_MARGIN_SECONDS = 30.0
"""Beyond the ranks' own time to save, before a job that was asked to stop is cancelled."""
GONE_SECONDS = 90.0
"""A cancelled job is killed after KillWait (30 s by default); a node may take a moment more to say so."""
KILLED_SECONDS = 10.0
"""For supervisors to end their ranks at once, and for the batch script to see it."""
SETTLE_SECONDS = 2.0
"""After a submit that failed without a clear answer, until the controller would show the job."""


class ClusterRun:
    """What this cluster knows of a run, and does to it."""

    def __init__(self, cluster: Cluster, run_id: str, paths: RunPaths, number: str | None = None) -> None:
        """`number`: the job's id, where a handle tells it."""
        self.cluster = cluster
        self.number = number
        self.run_id = run_id
        self.paths = paths

    def submit(self, job: Job, rendered: Rendered) -> str | None:
        """The job's id, also of one that another submit made; None for a run that ended before its id was noted."""
        with shared.one_at_a_time(self.paths):
            if shared.ended(self.paths) is not None:
                return self._number()
            found = self._alive()
            number = (found[0].id if found else self._sbatch(job, rendered)).partition("_")[0]
            shared.note_job(self.paths, {"launcher": "slurm", "job_id": number})
        return number

    def status(self) -> Status:
        """By squeue, then sacct. A controller that does not answer ends no run."""
        try:
            jobs = jobs_named(self.cluster, job_name(self.run_id))
        except LauncherRefused as error:
            return Status("running" if shared.has_begun(self.paths) else "pending", None, error.message)
        ended = shared.ended(self.paths)  # it may have ended just before SLURM was asked
        if ended is not None:
            return ended
        if jobs:
            return _status_of(jobs, self.paths)
        number = self._number()
        state = accounted_state(self.cluster, number) if number else None
        return _over(state, self.paths) if state else Status("lost", None, _lost(number))

    def cancel(self) -> None:
        """Let it save, then see it gone."""
        alive = self._alive()
        running = [job for job in alive if not job.is_pending]
        self._scancel([job for job in alive if job.is_pending])
        self._scancel(running, "--batch", f"--signal={_stop_signal(self.paths)}")
        if running:
            self._wait_until_gone(shared.grace_seconds(self.paths) + GRACE_MARGIN_SECONDS)
        self._end("cancelled")

    def kill(self) -> None:
        """Its supervisors end the ranks at once, which SLURM would leave to KillWait; what is deaf is killed."""
        running = [job for job in self._alive() if not job.is_pending]
        self._scancel(running, "--batch", f"--signal={_stop_signal(self.paths)}")
        self._scancel(running, "--signal=QUIT")
        if running and self._wait_until_gone(KILLED_SECONDS):
            self._scancel(self._alive(), "--full", "--signal=KILL")
        self._end("killed on request, without saving,")

    # --- its job ------------------------------------------------------------------------------------------------------

    def _number(self) -> str | None:
        return self.number or shared.job_told(self.paths).get("job_id")

    def _alive(self) -> list[QueuedJob]:
        return [job for job in jobs_named(self.cluster, job_name(self.run_id)) if not job.is_over]

    def _sbatch(self, job: Job, rendered: Rendered) -> str:
        """The job's id. What sbatch refused is LauncherRefused; where it is not known, RunFailed keeps the intent."""
        shared.write_files(rendered.files)
        seeds.begin_again(self.paths)
        said = self.cluster.run(rendered.commands[0])
        if said.code == 0:
            return said.out.strip().partition(";")[0]  # "123;cluster"
        words = last_line(said.err)
        try:
            found = self._taken_all_the_same()
        except LauncherRefused:
            raise RunFailed(
                f"sbatch failed ({words}), and SLURM does not answer: it is not known whether the job was taken",
                fix=f"dtrain status {self.run_id} finds it when SLURM answers again",
            ) from None
        if found:
            return found[0].id
        raise LauncherRefused(f"sbatch refused the job: {words}", file=rendered.commands[0][-1])

    def _taken_all_the_same(self) -> list[QueuedJob]:
        """An answer may be lost after the job was taken."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            found = self._alive()
            if found or time.monotonic() > deadline:
                return found
            time.sleep(POLL_SECONDS)

    def _scancel(self, jobs: list[QueuedJob], *flags: str) -> None:
        """A job that is gone by now is as good as cancelled: scancel's own complaint says nothing more."""
        if jobs:
            self.cluster.run(["scancel", *flags, *(job.id for job in jobs)])

    def _wait_until_gone(self, patience_seconds: float) -> list[QueuedJob]:
        deadline = time.monotonic() + patience_seconds
        while True:
            alive = self._alive()
            if not alive or time.monotonic() > deadline:
                return alive
            time.sleep(POLL_SECONDS)

    def _end(self, how: str) -> None:
        """Whatever is left goes; what could not write its exit.json gets one."""
        known = jobs_named(self.cluster, job_name(self.run_id))
        self._scancel([job for job in known if not job.is_over])
        left = self._wait_until_gone(GONE_SECONDS)
        if left:
            raise LauncherRefused(
                f"job {left[0].id} was cancelled and is still {left[0].state} on {left[0].nodes}",
                fix=f"look at it: scontrol show job {left[0].id}",
            )
        if known or shared.job_told(self.paths):
            shared.note_interrupted(self.paths, how)


def _status_of(jobs: list[QueuedJob], paths: RunPaths) -> Status:
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


def _stop_signal(paths: RunPaths) -> str:
    """The signal that the run's own script listens to."""
    text = paths.job_script.read_text(encoding="utf-8") if paths.job_script.exists() else ""
    return "USR1" if "--signal=B:USR2@" in text else "USR2"
