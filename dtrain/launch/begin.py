"""From a complete run folder to a running run: intent, submit, handle, in this order, and back again on a refusal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dtrain.errors import BadInput, LauncherRefused, PartMissing
from dtrain.launch import registry
from dtrain.launch.api import Job, Launcher, Rendered, Status
from dtrain.launch.load import load
from dtrain.launch.registry import Entry
from dtrain.launch.standing import folder_status
from dtrain.paths import RunPaths

NOTHING_STARTED = (LauncherRefused, BadInput, PartMissing)
"""What a launcher raises when it took nothing. After anything else a run may exist, and the intent stays."""


def refuse_unready(launcher: Launcher, job: Job) -> None:
    """LauncherRefused with all that stands in the way of a submit."""
    problems = launcher.check(job)
    if problems:
        raise LauncherRefused(f"{launcher.name} cannot take this run: " + "; ".join(problems), key="--on")


def submit(launcher: Launcher, job: Job, rendered: Rendered, entry: Entry) -> Entry:
    """Start it. The entry comes back with its handle; a refusal leaves no entry behind where there was none."""
    known = isinstance(registry.read(registry.folder() / f"{entry.id}.json"), Entry)
    registry.write(replace(entry, handle=None))
    try:
        handle = launcher.submit(job, rendered)
    except NOTHING_STARTED:
        registry.write(entry) if known else registry.forget(entry)
        raise
    started = replace(entry, handle=handle.as_json())
    registry.write(started)
    return started


def folder_of(entry: Entry) -> Path:
    """The run's output folder on this machine."""
    return Path(entry.folder)


def status(entry: Entry, *, ask: bool = True) -> Status:
    """How a run stands: by its folder where that can tell, else by its launcher, or (not `ask`) its last word."""
    found = folder_status(RunPaths(folder_of(entry)))
    if found is not None:
        return found
    if ask:
        return load(entry.launcher).status(entry.submitted())
    if entry.last is not None:
        return Status(entry.last["state"], entry.last.get("exit_code"), entry.last.get("reason", ""))
    if not folder_of(entry).exists():
        return Status("lost", None, "its folder is gone")
    return Status("pending", None, "" if entry.handle is not None else "the client ended while it was being submitted")
