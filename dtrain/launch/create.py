"""A run comes to be: its id, its name, its folder, and in it the whole of what a worker needs, or nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dtrain.config.find import find_file
from dtrain.config.load import dump
from dtrain.config.schema import Config, Dataset
from dtrain.errors import BadInput
from dtrain.files import read_json, sync_folder, write_whole
from dtrain.launch import registry
from dtrain.launch.api import Job
from dtrain.launch.ending import read_or_none
from dtrain.launch.registry import Entry
from dtrain.launch.standing import never_began, run_state
from dtrain.paths import RunPaths

_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32: no letter that is read as another."""


def new_id(now: float | None = None) -> str:
    """`20261123-191500-k3f9`: UTC, so that ids sort by time, and 20 random bits for two launches in one second."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    return f"{stamp}-{''.join(secrets.choice(_LETTERS) for _ in range(4))}"


def run_name(config: Config, file: Path | None, given: str | None) -> str:
    """--name, else the config's, else the file's without its ending. Names need not be unique; ids are."""
    name = given or config.name or (file.stem if file is not None else "run")
    if not name.isprintable() or name.strip() != name:
        raise BadInput("a name is one line of printable characters", key="--name" if given else "name", value=name)
    return name


def output_folder(config: Config, name: str, run_id: str) -> Path:
    """`output_dir` as seen from the working directory, else `runs/NAME-ID` there."""
    if config.output_dir is not None:
        return Path(os.path.abspath(Path(config.output_dir).expanduser()))
    return Path.cwd() / "runs" / folder_name(name, run_id)


def folder_name(name: str, run_id: str) -> str:
    safe = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "run"
    return f"{safe[:80]}-{run_id}"


def settled(config: Config, file: Path | None, name: str, output: Path) -> Config:
    """The config as the run keeps it: it means the same from any folder."""
    changes: dict[str, Any] = {"name": name, "output_dir": str(output)}
    for key in ("base_model", "tokenizer_config"):
        said = getattr(config, key)
        if said is not None:
            changes[key] = _absolute(said, file)
    for key in ("datasets", "test_datasets"):
        if getattr(config, key) is not None:
            changes[key] = [_with_absolute_path(dataset, file) for dataset in getattr(config, key)]
    return config.model_copy(update=changes)


def _with_absolute_path(dataset: Dataset, file: Path | None) -> Dataset:
    return dataset.model_copy(update={"path": _absolute(dataset.path, file)})


def _absolute(said: str, file: Path | None) -> str:
    """A path where there is such a file or folder, else what was said: a name on the hub."""
    found = find_file(said, file)
    return said if found is None else os.path.abspath(found)


def refuse_taken(output: Path) -> None:
    """BadInput if the folder holds a run that began, or files that are not ours; an empty or absent one is free."""
    paths = RunPaths(output)
    if output.exists() and not output.is_dir():
        raise BadInput("the output folder is a file", key="output_dir", value=str(output), fix="--set output_dir=…")
    if paths.run.is_dir() and not never_began(paths):
        raise _run_exists(paths)
    if output.is_dir() and any(path != paths.run and not _is_leftover(path) for path in output.iterdir()):
        raise BadInput(
            "the output folder holds files that are not a run's", file=str(output), key="output_dir",
            fix="--set output_dir=ANOTHER_FOLDER, or leave output_dir out: then it is runs/NAME-ID",
        )  # fmt: skip


def _run_exists(paths: RunPaths) -> BadInput:
    state = run_state(paths)
    try:
        told = read_json(paths.about)
        who = f"{told['name']} ({told['id']})"
    except (OSError, ValueError, KeyError):
        who = "a run"
    on = f"dtrain attach {paths.output}" if state == "running" else f"dtrain resume {paths.output}"
    return BadInput(
        f"the output folder holds {who}, which {_STATE_WORDS.get(state, 'was started')}",
        file=str(paths.output), key="output_dir",
        fix=f"`{on}`, or launch with another folder: --set output_dir=ANOTHER_FOLDER",
    )  # fmt: skip


_STATE_WORDS = {
    "running": "is running",
    "done": "is finished",
    "interrupted": "was interrupted",
    "failed": "failed",
    "lost": "is lost",
}


def run_files(config: Config, plan: Mapping[str, Any], entry: Entry) -> dict[str, str]:
    """What the `dtrain` folder holds before anything starts: name → content."""
    about = {
        "schema_version": 1, "id": entry.id, "name": entry.name, "launcher": entry.launcher, "profile": entry.profile,
        "created": entry.created, "nodes": entry.nodes, "ranks_per_node": entry.ranks_per_node, "device": entry.device,
        "working_directory": entry.working_directory, "options": dict(entry.options),
    }  # fmt: skip
    return {"config.yaml": dump(config), "plan.json": _json(plan), "run.json": _json(about)}


def _json(document: Any) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def create(output: Path, files: Mapping[str, str]) -> RunPaths:
    """Write `output/dtrain` with its files, whole or not at all. Of two clients one gets the folder."""
    paths = RunPaths(output)
    beside = output / f".dtrain-{os.getpid()}-{secrets.token_hex(4)}.part"
    with _undone_on_failure(output), _told_as_bad_input(output):
        output.mkdir(parents=True, exist_ok=True)
        try:
            for name, content in files.items():
                write_whole(beside / name, content)
            _make_room(paths)
            beside.rename(paths.run)
            sync_folder(output)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return paths


def _make_room(paths: RunPaths) -> None:
    """A run that bad input ended before its first step goes, with its entry: only its mistake would be left."""
    if paths.run.is_dir() and never_began(paths):
        told = read_or_none(paths.about) or {}
        registry.forget(str(told.get("id")))
        shutil.rmtree(paths.run)


def discard(paths: RunPaths) -> None:
    """Take back a run that no launcher took."""
    shutil.rmtree(paths.run, ignore_errors=True)
    _remove_empty(paths.output)


def _is_leftover(path: Path) -> bool:
    """Of a client that was killed while it created a run."""
    return path.name.startswith(".dtrain-") and path.name.endswith(".part")


@contextmanager
def _undone_on_failure(output: Path) -> Iterator[None]:
    """Folders that were made on the way are removed again."""
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in made:
            _remove_empty(folder)
        raise


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return


@contextmanager
def _told_as_bad_input(output: Path) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise BadInput(f"the run's folder cannot be made: {error.strerror}", file=str(output)) from None
    except UnicodeEncodeError:
        raise BadInput("the folder's name is not valid UTF-8", file=repr(str(output)), key="output_dir") from None
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:  # another client was faster
            raise _run_exists(RunPaths(output)) from None
        raise BadInput(
            f"the run's folder cannot be written: {error.strerror}; nothing was left there", file=str(output),
            key="output_dir", fix="free space there, or take another folder: --set output_dir=…",
        ) from None  # fmt: skip


def job_of(entry: Entry, plan: Mapping[str, Any], config: Mapping[str, Any]) -> Job:
    """What a launcher is asked to start."""
    return Job(
        run_id=entry.id,
        name=entry.name,
        folder=Path(entry.folder),
        nodes=entry.nodes,
        ranks_per_node=entry.ranks_per_node,
        device="cuda" if entry.device == "cuda" else "cpu",
        plan=plan,
        config=config,
        options=entry.options,
        working_directory=entry.working_directory,
    )
