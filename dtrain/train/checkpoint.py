"""Checkpoints that are whole or absent: written beside, synced, then renamed; found by reading, not by name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.files import read_json, sync_folder, write_json
from dtrain.paths import RunPaths
from dtrain.train.leaves import LeafReader
from dtrain.train.loop import Progress

MANIFEST = "manifest.json"
SEAL = "sha256"
"""Of a manifest, over the rest of it; manifests of before files were hashed in leaves have none."""


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    step: int
    progress: Progress
    world: int
    zero_stage: int
    wandb_run_id: str | None
    schedule: Mapping[str, Any]
    """What decided which rows each step saw; empty where an older dtrain wrote it."""
    versions: Mapping[str, Any]
    leaves_sha256: Mapping[str, str | None]
    """Of each file by its name; None where an older dtrain hashed it as a whole."""


@dataclass(frozen=True)
class States:
    """What a checkpoint holds the states of."""

    model: Any
    """Whose parameter names are used: transformers' model, inside LossModel and engine."""
    optimizer: Any
    """DeepSpeed's optimizer, or torch's own at stage 0 in fp32."""
    zero_stage: int

    @property
    def _scaler(self) -> Any:
        """fp16's dynamic loss scale; None in every other precision."""
        scaler = getattr(self.optimizer, "loss_scaler", None) or getattr(self.optimizer, "loss_scale_config", None)
        return scaler if getattr(self.optimizer, "dynamic_loss_scale", False) else None

    def scaler_numbers(self) -> dict[str, float]:
        return {} if self._scaler is None else {n: v for n, v in vars(self._scaler).items() if type(v) in (int, float)}

    def set_scaler_numbers(self, numbers: Mapping[str, float]) -> None:
        for name in self.scaler_numbers().keys() & numbers.keys():
            setattr(self._scaler, name, numbers[name])


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay when a new one is whole: the newest `last`, the best, and one every `hours`."""

    last: int = 2
    hours: float | None = None


def part_of(final: Path) -> Path:
    """Where a checkpoint is written before it is whole."""
    return final.with_name(f".{final.name}.part")


def sweep_parts(paths: RunPaths) -> None:
    """Remove what a life that was cut short inside a save left behind."""
    for left in paths.checkpoints.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


def remove(folder: Path) -> None:
    """Take its name away first: a life that ends in between leaves no half of a checkpoint under that name."""
    gone = folder.with_name(f".{folder.name}.gone")
    try:
        folder.rename(gone)
    except OSError:  # not there
        return
    shutil.rmtree(gone, ignore_errors=True)


def complete(final: Path, manifest: Mapping[str, Any]) -> None:
    """All parts are written and synced: the manifest, then the rename that makes them a checkpoint."""
    part = part_of(final)
    write_json(part / MANIFEST, sealed(manifest))
    remove(final)  # the same step again, after a rollback or over a damaged one
    part.rename(final)
    sync_folder(final.parent)


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in manifest.items() if name != SEAL}
    return {**rest, SEAL: hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def forget_old(paths: RunPaths, newest: int, best: int | None, keep: Keep) -> None:
    """Delete what need not be kept now that the checkpoint of step `newest` is whole. Anything beyond that step is
    what a resume or a rollback has passed over."""
    folders = sorted(paths.checkpoints.glob("step-*"), key=step_of)
    past = [folder for folder in folders if step_of(folder) <= newest]
    kept = {*past[-keep.last :], *(folder for folder in past if step_of(folder) == best), *_spaced(past, keep.hours)}
    for folder in folders:
        if folder not in kept:
            remove(folder)


def _spaced(folders: Iterable[Path], hours: float | None) -> Iterator[Path]:
    """Of these, oldest first, every one that was written at least `hours` after the one taken before it."""
    taken = None
    for folder in folders if hours is not None else ():
        try:
            written = float(read_json(folder / MANIFEST)["time"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if taken is None or written - taken >= (hours or 0) * 3600:
            taken = written
            yield folder


def step_of(folder: Path) -> int:
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1


def newest_good(paths: RunPaths) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose every file is there and unchanged, and a line for each damaged one passed over."""
    damaged: list[str] = []
    for folder in newest_first(paths):
        problem = what_is_wrong(folder)
        if problem is None:
            return read(folder), damaged
        damaged.append(f"{folder.name}: {problem}")
    return None, damaged


def newest_first(paths: RunPaths) -> list[Path]:
    """What has a checkpoint's name."""
    return sorted(paths.checkpoints.glob("step-*"), key=step_of, reverse=True)


def at_step(paths: RunPaths, step: int) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint of one step if it is good, else what is wrong with it."""
    folder = paths.checkpoint(step)
    problem = what_is_wrong(folder)
    return (read(folder), []) if problem is None else (None, [f"{folder.name}: {problem}"])


def read(folder: Path) -> Checkpoint:
    """Of a manifest in which nothing is wrong."""
    manifest = read_json(folder / MANIFEST)
    return Checkpoint(
        folder, manifest["step"], Progress(**manifest["progress"]), manifest["world"], manifest["zero_stage"],
        manifest.get("wandb_run_id"), dict(manifest.get("schedule") or {}), dict(manifest.get("versions") or {}),
        {name: about.get("leaves_sha256") for name, about in manifest["files"].items()},
    )  # fmt: skip


def what_is_wrong(folder: Path, share: int = 0, shares: int = 1) -> str | None:
    """Why a checkpoint cannot be used, or None. With `shares` only every so-many-th file is read."""
    return wrong_on_the_face(folder) or _wrong_inside(folder, share, shares)


def wrong_on_the_face(folder: Path, may_lack_files: bool = False) -> str | None:
    """The same as far as the manifest and the files' sizes tell. Machines without a common folder have a part each."""
    try:
        manifest = read_json(folder / MANIFEST)
        if _has_a_seal(manifest) and manifest != sealed(manifest):
            return "its manifest is damaged"
        Progress(**manifest["progress"])
        dict(manifest.get("schedule") or {}), dict(manifest.get("versions") or {})
        for name, about in sorted(manifest["files"].items()):
            path = (folder / name).resolve()
            if not path.is_relative_to(folder.resolve()):
                return f"{name} lies outside the checkpoint"
            if not path.is_file() and not may_lack_files:
                return f"{name} is missing"
            if path.is_file() and path.stat().st_size != about["bytes"]:
                return f"{name} is damaged"
    except _UNREADABLE as error:
        return _unreadable(error)
    return None


def _has_a_seal(manifest: Mapping[str, Any]) -> bool:
    """Its own key may be what was damaged: then the files tell of which dtrain the manifest is."""
    return SEAL in manifest or any("leaves_sha256" in about for about in manifest["files"].values())


_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


def _unreadable(error: BaseException) -> str:
    return f"its manifest cannot be read ({type(error).__name__}: {error})"


def _wrong_inside(folder: Path, share: int, shares: int) -> str | None:
    try:
        files: Mapping[str, Mapping[str, Any]] = read_json(folder / MANIFEST)["files"]
        with closing(LeafReader()) as reader:
            for name, about in sorted(files.items())[share::shares]:
                if not _is_as_written(reader, folder / name, about):
                    return f"{name} is damaged"
    except _UNREADABLE as error:
        return _unreadable(error)
    return None


def _is_as_written(reader: LeafReader, path: Path, about: Mapping[str, Any]) -> bool:
    if "leaves_sha256" in about:
        return bool(reader.digest(path) == about["leaves_sha256"])
    with path.open("rb") as stream:  # as dtrain wrote it before files were hashed in leaves
        return bool(hashlib.file_digest(stream, "sha256").hexdigest() == about["sha256"])
