"""A run on this machine, for launchers: start its supervisor, ask how it stands, read its logs, stop it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dtrain.errors import BadInput, LauncherRefused
from dtrain.files import write_whole
from dtrain.hardware.this_machine import Listed, listed_gpus
from dtrain.launch import runlogs
from dtrain.launch.api import Job, Rendered, Status
from dtrain.launch.ending import Ending
from dtrain.launch.process import end_run_processes
from dtrain.launch.spec import LaunchSpec
from dtrain.launch.standing import Supervisor, folder_status
from dtrain.paths import RunPaths

START_SECONDS = 60.0
"""A supervisor is up in a tenth of a second; a loaded machine may take longer."""
LOST_RACE_SECONDS = 5.0
"""Another client's supervisor was faster, and is about to say so."""
POLL_SECONDS = 0.02
SAME_CARD = 0.9
"""A card with less than this share of the planned memory is another card than the profile says."""


def supervise_command(paths: RunPaths) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", "dtrain.launch.supervise", str(paths.output))


def start(paths: RunPaths, rendered: Rendered) -> None:
    """Write what was rendered and run its one command, a supervisor, detached. Returns once that watches the run.

    A second start of the same run does nothing, also at the same time from another process.
    """
    if was_started(paths):
        return
    try:
        for path, content in rendered.files.items():
            write_whole(Path(path), content)
        paths.logs.mkdir(parents=True, exist_ok=True)
        child: int | None = _spawn(rendered.commands[0], paths)
    except OSError as error:
        raise LauncherRefused(
            f"the run cannot be started: {error.strerror}", file=error.filename and str(error.filename)
        ) from None
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if was_started(paths):
            return
        if child is not None and _has_ended(child):
            child = None
            deadline = min(deadline, time.monotonic() + LOST_RACE_SECONDS)
        time.sleep(POLL_SECONDS)
    said = "\n  ".join(runlogs.last_lines(paths.launch_log, 10))
    raise LauncherRefused(f"the supervisor of the run did not start\n  {said}", file=str(paths.launch_log))


def was_started(paths: RunPaths) -> bool:
    """It runs, or it has ended; a lost run may be started again."""
    return Ending.read(paths) is not None or _is_running(paths)


def _spawn(command: tuple[str, ...], paths: RunPaths) -> int:
    """In its own session: it outlives this process and its terminal."""
    log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(paths.launch_log), log_flags, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawnp(command[0], command, os.environ, file_actions=files, setsid=True)


def _has_ended(child: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(child, os.WNOHANG)[0] == child
    return True


def _is_running(paths: RunPaths) -> bool:
    supervisor = Supervisor.read(paths)
    return supervisor is not None and supervisor.is_of_this_machine and supervisor.is_running


def status(paths: RunPaths) -> Status:
    """From the folder. `start` returns only when a supervisor watches, so a folder without one was never started."""
    return folder_status(paths) or Status("lost", None, "it was never started on this machine")


def logs(paths: RunPaths, follow: bool, rank: int | None = None) -> Iterator[str]:
    return runlogs.merged(paths, follow, lambda: status(paths).state != "running", rank)


def stop(paths: RunPaths, run_id: str, *, at_once: bool = False) -> None:
    """End the run, letting it save first unless `at_once`. Returns when no process of it is left; may be repeated."""
    supervisor = Supervisor.read(paths)
    if supervisor is not None and supervisor.run_id == run_id and _is_running(paths):
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor.pid, signal.SIGQUIT if at_once else signal.SIGTERM)
        patience = 15.0 if at_once else LaunchSpec.read(paths).grace_seconds + 15
        _wait_until_gone(paths, patience)
        if _is_running(paths):  # it does not answer
            os.kill(supervisor.pid, signal.SIGKILL)
    left = end_run_processes(run_id)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise LauncherRefused(
            f"processes of the run cannot be killed: {pids}", fix="look at them with ps -o pid,stat,cmd"
        )


def _wait_until_gone(paths: RunPaths, patience_seconds: float) -> None:
    deadline = time.monotonic() + patience_seconds
    while _is_running(paths) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def gpus() -> list[Listed]:
    """The GPUs a process started here would see."""
    return listed_gpus()


def refuse_other_gpus(job: Job, found: list[Listed]) -> None:
    """A profile that this machine is not is the person's mistake: BadInput with what is here."""
    if len(found) < job.ranks_per_node:
        raise BadInput(
            f"the profile has {job.ranks_per_node} GPUs and this machine shows {len(found)}",
            key="--profile",
            allowed=f"up to {len(found)} GPUs here" if found else "cpu, cpux4: nvidia-smi shows no GPU here",
            fix="--profile auto takes what is here; CUDA_VISIBLE_DEVICES hides GPUs",
        )
    planned_gib = job.plan.get("profile", {}).get("capacity_gib")
    smallest = min(found[: job.ranks_per_node], key=memory_gib)
    here_gib = memory_gib(smallest)
    if planned_gib and here_gib < SAME_CARD * planned_gib:
        raise BadInput(
            f"the profile's cards have {planned_gib:.0f} GiB, and a {smallest.name} here has {here_gib:.0f}",
            key="--profile",
            fix="--profile auto plans for the cards that are here",
        )


def memory_gib(gpu: Listed) -> float:
    """0 where the driver does not tell."""
    try:
        return float(gpu.memory_mib) / 1024
    except ValueError:
        return 0.0
