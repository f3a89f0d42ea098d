"""From a complete run folder to a running run: intent, submit, handle, in this order, and back again on a refusal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dtrain.errors import BadInput, DtrainError, LauncherRefused, PartMissing, RunFailed
from dtrain.launch import registry, runlogs
from dtrain.launch.api import Job, Launcher, Rendered, Status
from dtrain.launch.load import load
from dtrain.launch.registry import Entry
from dtrain.launch.standing import folder_status, other_run
from dtrain.paths import RunPaths

NOTHING_STARTED = (LauncherRefused, BadInput, PartMissing)
"""What a launcher raises when it took nothing. After anything else a run may exist, and the intent stays."""


def refuse_unready(launcher: Launcher, job: Job) -> None:
    """LauncherRefused with all that stands in the way of a submit."""
    problems = launcher.check(job)
    if problems:
        raise LauncherRefused(f"{launcher.name} cannot take this run: " + "; ".join(problems), key="--on")


def problems_of(launcher: Launcher, job: Job) -> list[str]:
    """The same, told instead of raised: a dry run shows it and goes on."""
    try:
        return launcher.check(job)
    except DtrainError as error:
        return [str(error)]


def submit(launcher: Launcher, job: Job, rendered: Rendered, entry: Entry) -> Entry:
    """Start it. The entry comes back with its handle; a refusal leaves no entry behind where there was none."""
    known = isinstance(registry.read(registry.folder() / f"{entry.id}.json"), Entry)
    registry.write(replace(entry, handle=None))
    try:
        handle = launcher.submit(job, rendered)
    except NOTHING_STARTED:
        registry.write(entry) if known else registry.forget(entry.id)
        raise
    started = replace(entry, handle=handle.as_json())
    registry.write(started)
    return started


def folder_of(entry: Entry) -> Path:
    """The run's output folder on this machine."""
    return Path(entry.folder)


def status(entry: Entry, *, ask: bool = True) -> Status:
    """How a run stands: by its folder where that can tell, else by its launcher, or (not `ask`) its last word. A file
    that was damaged makes it lost, and is named."""
    try:
        return _status(entry, ask)
    except RunFailed as error:
        return Status("lost", None, f"{error.file}: {error.message}")


def _status(entry: Entry, ask: bool) -> Status:
    paths = RunPaths(folder_of(entry))
    other = other_run(paths, entry.id)
    if other is not None:
        return Status("lost", None, f"its folder holds another run now: {other}")
    found = folder_status(paths)
    if found is not None:
        return found
    if ask:
        return load(entry.launcher).status(entry.submitted())
    if entry.last is not None:
        return Status(entry.last["state"], entry.last.get("exit_code"), entry.last.get("reason", ""))
    if not folder_of(entry).exists():
        return Status("lost", None, "its folder is gone")
    return Status("pending", None, "" if entry.handle is not None else "the client ended while it was being submitted")


def as_last_seen(entries: Sequence[Entry]) -> list[tuple[Entry, Status]]:
    """How each run stands as far as this machine's files tell: fast, and without a word to any launcher."""
    return [(entry, status(entry, ask=False)) for entry in entries]


def refreshed(entries: Sequence[Entry]) -> tuple[list[tuple[Entry, Status]], list[str]]:
    """The same after asking the launchers, and what went wrong in asking: an unreachable run is not a dead one."""
    runs, problems = [], []
    for entry in entries:
        try:
            found = status(entry)
        except DtrainError as error:
            problems.append(f"{entry.id}: {error}")
            found = status(entry, ask=False)
        else:
            registry.write(entry.told(found))
        runs.append((entry, found))
    return runs, problems


def logs(entry: Entry, follow: bool, rank: int | None = None) -> Iterator[str]:
    """Lines of a run's logs: from its folder where it runs or ran here, else through its launcher."""
    ranks = entry.nodes * entry.ranks_per_node
    if rank is not None and rank >= ranks:
        raise BadInput("the run has no such rank", key="--rank", value=rank, allowed=f"0 to {ranks - 1}")
    paths = RunPaths(folder_of(entry))
    if paths.logs.is_dir():
        return runlogs.merged(paths, follow, lambda: status(entry).state not in ("running", "pending"), rank)
    if rank is None:
        return load(entry.launcher).logs(entry.submitted(), follow)
    mark = f"[rank {rank}]"
    return (line for line in load(entry.launcher).logs(entry.submitted(), follow) if line.startswith(mark))


def refuse_ambiguous(said: str, found: Entry) -> None:
    """For what cannot be undone: BadInput when several live runs have that name."""
    if said != found.name:
        return
    live = [
        one for one in (found, *registry.namesakes(found)) if status(one, ask=False).state in ("running", "pending")
    ]
    if len(live) > 1:
        raise BadInput(
            "several runs of that name are alive", key="RUN", value=said,
            allowed=", ".join(one.id for one in live), fix="say its id",
        )  # fmt: skip
