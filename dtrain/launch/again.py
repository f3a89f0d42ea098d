"""A run that stopped gets another life in the same folder."""

from __future__ import annotations

from pathlib import Path

from dtrain.config.load import load as load_config
from dtrain.errors import BadInput
from dtrain.files import read_json
from dtrain.launch import begin
from dtrain.launch.api import Launcher
from dtrain.launch.create import job_of
from dtrain.launch.ending import last_checkpoint, put_aside, put_back
from dtrain.launch.load import load
from dtrain.launch.registry import Entry
from dtrain.launch.standing import other_run
from dtrain.paths import RunPaths


def go_on(entry: Entry, force: bool) -> tuple[Entry, Launcher, int | None]:
    """Submit it again. The entry with its new handle, its launcher, and the step it goes on after (None: from 0).

    BadInput if it runs, is finished, or has nothing to go on from (unless `force`, which also lets its data change).
    """
    paths = RunPaths(begin.folder_of(entry))
    step = _refuse_unresumable(entry, paths, force)
    launcher = load(entry.launcher)
    job = job_of(entry, _plan(paths), load_config(paths.config).config.model_dump(mode="json"))
    rendered = launcher.render(job)
    begin.refuse_unready(launcher, job)
    launcher.cancel(entry.submitted())  # of a lost run, whatever still lives
    aside = put_aside(paths)
    if force:
        paths.data.unlink(missing_ok=True)  # the data may have changed: what is prepared now counts
    try:
        return begin.submit(launcher, job, rendered, entry), launcher, step
    except begin.NOTHING_STARTED:
        put_back(paths, aside)
        raise


def _refuse_unresumable(entry: Entry, paths: RunPaths, force: bool) -> int | None:
    other = other_run(paths, entry.id)
    if other is not None:
        raise BadInput(
            f"the folder of {entry.id} holds another run now", key="RUN", file=entry.folder,
            fix=f"dtrain resume {other}",
        )  # fmt: skip
    state = begin.status(entry).state
    who = f"{entry.id} ({entry.name})"
    if state in ("running", "pending") and entry.handle is not None:
        raise BadInput(f"{who} is {state} already", key="RUN", fix=f"dtrain attach {entry.id}")
    if state == "done":
        raise BadInput(
            f"{who} is finished: there is nothing left to train", key="RUN", file=entry.folder,
            fix=f"dtrain generate {entry.id} --prompt '…', or launch again under another name",
        )  # fmt: skip
    step = last_checkpoint(paths)
    if step is None and not force:
        raise BadInput(
            f"{who} saved no checkpoint to go on from", key="RUN", file=entry.folder,
            fix=f"dtrain resume {entry.id} --force begins again at step 0",
        )  # fmt: skip
    return step


def _plan(paths: RunPaths) -> dict[str, object]:
    try:
        plan: dict[str, object] = read_json(paths.plan)
    except (OSError, ValueError) as error:
        raise BadInput("the run's plan cannot be read", file=str(Path(paths.plan)), value=str(error)) from None
    return plan
