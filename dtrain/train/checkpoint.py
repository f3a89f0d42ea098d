"""Checkpoints that are whole or absent: written beside, synced, then renamed; found by reading, not by name."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dtrain.files import read_json, sync_folder, write_json
from dtrain.paths import RunPaths
from dtrain.train import state_files
from dtrain.train.loop import Progress
from dtrain.train.optimizers import page_again
from dtrain.train.partitions import partitions, take_over
from dtrain.train.ranks import Ranks

MANIFEST = "manifest.json"


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
    write_json(part / MANIFEST, manifest)
    remove(final)  # the same step again, after a rollback or over a damaged one
    part.rename(final)
    sync_folder(final.parent)


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)  # the disk reads while we hash
        return hashlib.file_digest(stream, "sha256").hexdigest()


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


def newest_good(paths: RunPaths, ranks: Ranks | None = None) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose every file is there and unchanged, and a line for each damaged one passed over.

    With `ranks` each of them reads its share of the files, and all come to the same answer.
    """
    damaged: list[str] = []
    folders = sorted(paths.checkpoints.glob("step-*"), key=step_of, reverse=True)
    if ranks is not None and len(set(map(tuple, ranks.gather([folder.name for folder in folders])))) > 1:
        raise RuntimeError("ranks see different checkpoints: is the run's folder shared by all nodes?")
    for folder in folders:
        problem = what_is_wrong(folder) if ranks is None else _wrong_for_any(folder, ranks)
        if problem is None:
            return _read(folder), damaged
        damaged.append(f"{folder.name}: {problem}")
    return None, damaged


def _wrong_for_any(folder: Path, ranks: Ranks) -> str | None:
    told = ranks.gather(what_is_wrong(folder, ranks.rank, ranks.world))
    return next((problem for problem in told if problem is not None), None)


def at_step(paths: RunPaths, step: int) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint of one step if it is good, else what is wrong with it."""
    folder = paths.checkpoint(step)
    problem = what_is_wrong(folder)
    return (_read(folder), []) if problem is None else (None, [f"{folder.name}: {problem}"])


def _read(folder: Path) -> Checkpoint:
    manifest = read_json(folder / MANIFEST)
    return Checkpoint(
        folder, manifest["step"], Progress(**manifest["progress"]), manifest["world"], manifest["zero_stage"],
        manifest.get("wandb_run_id"), dict(manifest.get("schedule") or {}), dict(manifest.get("versions") or {}),
    )  # fmt: skip


def what_is_wrong(folder: Path, share: int = 0, shares: int = 1) -> str | None:
    """Why a checkpoint cannot be used, or None. With `shares` only every so-many-th file is read."""
    try:
        manifest = read_json(folder / MANIFEST)
        files: Mapping[str, Mapping[str, Any]] = manifest["files"]
        Progress(**manifest["progress"])
        dict(manifest.get("schedule") or {}), dict(manifest.get("versions") or {})
        for name, about in sorted(files.items())[share::shares]:
            path = (folder / name).resolve()
            if not path.is_relative_to(folder.resolve()):
                return f"{name} lies outside the checkpoint"
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != about["bytes"] or sha256(path) != about["sha256"]:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({type(error).__name__}: {error})"
    return None


def load(states: States, checkpoint: Checkpoint, ranks: Ranks) -> None:
    """Put a checkpoint's states into a fresh engine, whatever number of ranks and ZeRO stage wrote them."""
    with torch.no_grad():
        state_files.read(checkpoint.folder, partitions(states.model, states.optimizer))
        take_over(states.optimizer)
        page_again(states.optimizer)
    states.set_scaler_numbers(state_files.extra_of(checkpoint.folder, ranks.rank)["scaler"])
