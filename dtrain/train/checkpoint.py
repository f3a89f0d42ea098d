"""Checkpoints that are whole or absent: written beside, synced, then renamed; found by reading, not by name."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from dtrain import __version__
from dtrain.errors import DtrainError, RunFailed
from dtrain.files import read_json, sync_file, sync_folder, write_json
from dtrain.paths import RunPaths
from dtrain.train import state_files
from dtrain.train.loop import Progress
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


def save(
    states: States, paths: RunPaths, progress: Progress, ranks: Ranks, keep: int, wandb_run_id: str | None
) -> None:
    """Write `checkpoints/step-N` from all ranks. A rank that cannot write (a full disk) fails the save on every rank;
    the checkpoints that are there stay as they are."""
    final = paths.checkpoint(progress.step)
    beside = final.with_name(f".{final.name}.part")
    if ranks.is_first:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    ranks.wait()
    problem = _write_states(states, beside, ranks)
    files = ranks.gather(_describe(beside, ranks)) if problem is None else []
    if problem is not None:
        if ranks.is_first:
            shutil.rmtree(beside, ignore_errors=True)
        raise problem
    if ranks.is_first:
        manifest = {
            "schema_version": 1, "dtrain": __version__, "step": progress.step, "progress": asdict(progress),
            "world": ranks.world, "zero_stage": states.zero_stage, "wandb_run_id": wandb_run_id,
            "files": {name: about for told in files for name, about in told.items()},
        }  # fmt: skip
        write_json(beside / MANIFEST, manifest)
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        sync_folder(final.parent)
        forget_old(paths, keep, progress.best_step)
    ranks.wait()


def _write_states(states: States, folder: Path, ranks: Ranks) -> DtrainError | None:
    """Every rank writes its own share; the first failure of any of them, or None."""
    reason = ""
    try:
        mine = partitions(states.model, states.optimizer)
        state_files.write(folder, ranks.rank, mine, states.zero_stage == 0, {"scaler": states.scaler_numbers()})
    except (OSError, SafetensorError) as error:  # safetensors wraps a full disk in an error of its own
        reason = f"rank {ranks.rank}: {error}"
    reasons = [told for told in ranks.gather(reason) if told]
    if not reasons:
        return None
    return RunFailed(
        f"a checkpoint could not be written: {reasons[0].splitlines()[0]}", file=str(folder),
        fix="free space on that disk, then `dtrain resume`; the checkpoints before this one are whole",
    )  # fmt: skip


def _describe(folder: Path, ranks: Ranks) -> dict[str, dict[str, Any]]:
    """Sync, measure and hash this rank's share of the files."""
    ranks.wait()
    mine = sorted(path for path in folder.rglob("*") if path.is_file())[ranks.rank :: ranks.world]
    for path in mine:
        sync_file(path)
    return {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in mine}


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def forget_old(paths: RunPaths, keep: int, best_step: int | None) -> None:
    """Delete all but the newest `keep` checkpoints and the best one."""
    folders = sorted(paths.checkpoints.glob("step-*"), key=step_of)
    for folder in folders[:-keep]:
        if step_of(folder) != best_step:
            shutil.rmtree(folder, ignore_errors=True)


def step_of(folder: Path) -> int:
    number = folder.name.removeprefix("step-")
    return int(number) if number.isdigit() else -1


def newest_good(paths: RunPaths) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose every file is there and unchanged, and a line for each damaged one passed over."""
    damaged: list[str] = []
    for folder in sorted(paths.checkpoints.glob("step-*"), key=step_of, reverse=True):
        problem = what_is_wrong(folder)
        if problem is None:
            return _read(folder), damaged
        damaged.append(f"{folder.name}: {problem}")
    return None, damaged


def at_step(paths: RunPaths, step: int) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint of one step if it is good, else what is wrong with it."""
    folder = paths.checkpoint(step)
    problem = what_is_wrong(folder)
    return (_read(folder), []) if problem is None else (None, [f"{folder.name}: {problem}"])


def _read(folder: Path) -> Checkpoint:
    manifest = read_json(folder / MANIFEST)
    return Checkpoint(
        folder, manifest["step"], Progress(**manifest["progress"]), manifest["world"], manifest["zero_stage"],
        manifest.get("wandb_run_id"),
    )  # fmt: skip


def what_is_wrong(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, or None."""
    try:
        manifest = read_json(folder / MANIFEST)
        files: Mapping[str, Mapping[str, Any]] = manifest["files"]
        Progress(**manifest["progress"])
        for name, about in files.items():
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
    states.set_scaler_numbers(state_files.extra_of(checkpoint.folder, ranks.rank)["scaler"])
