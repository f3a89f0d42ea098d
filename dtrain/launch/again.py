"""A run that stopped gets another life in the same folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dtrain.config.load import loads
from dtrain.errors import BadInput
from dtrain.files import write_whole
from dtrain.hardware.profiles import looks_like_path
from dtrain.launch import begin
from dtrain.launch.api import Launcher
from dtrain.launch.create import job_of, run_files
from dtrain.launch.ending import last_checkpoint, put_aside, put_back
from dtrain.launch.layout import planned_again
from dtrain.launch.load import load
from dtrain.launch.registry import Entry
from dtrain.launch.standing import other_run
from dtrain.own_process import ACCEPT_CHANGES
from dtrain.paths import RunPaths


def go_on(
    entry: Entry, force: bool, sets: Sequence[str] = (), profile: str | None = None
) -> tuple[Entry, Launcher, int | None]:
    """Submit it again. The entry with its new handle, its launcher, and the step it goes on after (None: from 0).

    `sets` and `profile` change its layout or its machine; the global batch stays. BadInput if it runs, is finished, or
    has nothing to go on from (unless `force`, which also lets its data and code change).
    """
    paths = RunPaths(begin.folder_of(entry))
    step = _refuse_unresumable(entry, paths, force)
    launcher = load(entry.launcher)
    entry, files = _as_changed(entry, paths, sets, profile)
    job = job_of(entry, json.loads(files["plan.json"]), loads(files["config.yaml"]).config.model_dump(mode="json"))
    if force:
        job = replace(job, env={**job.env, ACCEPT_CHANGES: "1"})
    rendered = launcher.render(job)
    begin.refuse_unready(launcher, job)
    launcher.cancel(entry.submitted())  # of a lost run, whatever still lives
    aside = put_aside(paths)
    _exchange(paths, files, aside)
    if force:
        paths.data.unlink(missing_ok=True)  # the data may have changed: what is prepared now counts
    try:
        return begin.submit(launcher, job, rendered, entry), launcher, step
    except begin.NOTHING_STARTED:
        put_back(paths, aside)
        raise


def _as_changed(
    entry: Entry, paths: RunPaths, sets: Sequence[str], profile: str | None
) -> tuple[Entry, Mapping[str, str]]:
    """The entry and the files of the run's folder, with another layout or machine where one was asked for."""
    if not sets and profile is None:
        return entry, {name: _text(paths.run / name) for name in ("config.yaml", "plan.json")}
    loaded, plan = planned_again(paths, sets, profile)
    machine = plan.profile
    changed = replace(
        entry, profile=machine.name, nodes=machine.nodes, ranks_per_node=machine.gpus_per_node,
        device="cpu" if machine.is_cpu else "cuda",
    )  # fmt: skip
    own = {"profile.yaml": Path(profile).read_text()} if profile is not None and looks_like_path(profile) else {}
    return changed, run_files(loaded.config, plan.as_json(), changed) | own


def _exchange(paths: RunPaths, files: Mapping[str, str], aside: Path | None) -> None:
    """Write what changed; what was there before lies beside what the last life left."""
    for name, content in files.items():
        file = paths.run / name
        before = file.read_text(encoding="utf-8") if file.is_file() else None
        if before == content:
            continue
        if aside is not None and before is not None:
            write_whole(aside / name, before)
        write_whole(file, content)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadInput("the run's folder cannot be read", file=str(file), value=str(error)) from None


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
