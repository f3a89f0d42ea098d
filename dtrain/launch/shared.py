"""A run that goes on elsewhere in a folder that this machine sees too: what its launcher needs of the folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dtrain.errors import LauncherRefused
from dtrain.files import write_json, write_whole
from dtrain.launch import ending, runlogs, standing
from dtrain.launch.api import Status
from dtrain.launch.spec import LaunchSpec
from dtrain.paths import RunPaths


def ended(paths: RunPaths) -> Status | None:
    """What exit.json says."""
    found = ending.Ending.read(paths)
    return None if found is None else Status(found.state, found.code, found.reason)


def note_interrupted(paths: RunPaths, how: str) -> None:
    """Write the exit.json of a run that was ended from outside before it could; one that is there stays."""
    if ending.Ending.read(paths) is None:
        ending.interrupted(paths, how).write(paths)


def stage(paths: RunPaths) -> str:
    return standing.stage(paths)


def has_begun(paths: RunPaths) -> bool:
    return paths.state.exists()


def step_reached(paths: RunPaths) -> int:
    return ending.step_reached(paths)


def last_words(paths: RunPaths, lines: int = 3) -> str:
    """The end of what the batch system and the script said."""
    return " | ".join(runlogs.last_lines(paths.job_log, lines))


def logs(paths: RunPaths, follow: bool, is_over: Callable[[], bool]) -> Iterator[str]:
    return runlogs.merged(paths, follow, is_over)


def grace_seconds(paths: RunPaths) -> float:
    """How long the run's ranks may take to save; RunFailed where launch.json cannot be read."""
    return LaunchSpec.read(paths).grace_seconds


def about(paths: RunPaths) -> Mapping[str, Any]:
    """run.json; empty before there is one."""
    return ending.read_or_none(paths.about) or {}


def job_told(paths: RunPaths) -> Mapping[str, Any]:
    """job.json; empty before there is one."""
    return ending.read_or_none(paths.job) or {}


def note_job(paths: RunPaths, told: Mapping[str, Any]) -> None:
    write_json(paths.job, {"schema_version": 1, **told})


def write_files(files: Mapping[str, str]) -> None:
    """All of them, or LauncherRefused."""
    try:
        for path, content in files.items():
            write_whole(Path(path), content)
    except OSError as error:
        raise LauncherRefused(f"the job cannot be written: {error.strerror}", file=str(error.filename)) from None


@contextmanager
def one_at_a_time(paths: RunPaths) -> Iterator[None]:
    """Two clients that submit the same run go one after the other."""
    try:
        paths.logs.mkdir(parents=True, exist_ok=True)
        handle = os.open(paths.run / "submit.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise LauncherRefused(f"the run's folder cannot be written: {error.strerror}", file=str(paths.run)) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
