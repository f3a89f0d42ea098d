"""Offloading to a drive: how much of it a run takes, and whether a folder can hold that."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from dtrain.config.origins import Loaded
from dtrain.config.schema import Config
from dtrain.config.tree import error_at
from dtrain.errors import BadInput
from dtrain.planner.setup import DTYPE_BYTES, Setup
from dtrain.planner.states import States
from dtrain.units import GIB, memory

ABLE = ("adamw_torch", "adamw_torch_fused")
"""Optimizers whose states DeepSpeed swaps and we read back: every moment as large as the weights, in fp32."""


SUB_GROUP_ELEMENTS = 100_000_000
"""Of a rank's trained parameters stepped at once, at least one parameter's (DeepSpeed's own default is 1e9)."""
STATE_BUFFERS = 4
"""Master, gradient and two moments of a sub-group, in fp32."""
PARAMETER_BUFFERS = 6
"""Parameters of one layer that are on their way at once; DeepSpeed's default is 5."""


def asked(config: Config) -> tuple[str, ...]:
    """Keys that ask for a drive."""
    return tuple(key for key in ("offload_optimizer", "offload_params") if getattr(config, key) == "nvme")


def nvme_errors(loaded: Loaded) -> Iterator[BadInput]:
    """What offloading to a drive cannot stand beside, and a folder that is missing. Nothing of the folder itself."""
    config, keys = loaded.config, asked(loaded.config)
    if not keys or config.plan_as is not None:
        return
    if "offload_optimizer" in keys and config.zero_stage not in ("auto", 3):
        message, fix = "DeepSpeed keeps an optimizer on a drive at ZeRO stage 3 only", "zero_stage: 3"
        yield _at(loaded, "offload_optimizer", message, "nvme", f"{fix}, or offload_optimizer: cpu")
    if "offload_optimizer" in keys and config.optimizer not in ABLE:
        message = f"{config.optimizer} cannot be kept on a drive"
        yield _at(loaded, "optimizer", message, config.optimizer, "optimizer: adamw_torch", ", ".join(ABLE))
    if config.probe:
        message = "keeps a copy of a rank's states in memory, and those on a drive are too large for it"
        yield _at(loaded, "probe", message, True, "probe: false")


def missing_path(loaded: Loaded) -> list[BadInput]:
    """What a launch needs besides."""
    keys = asked(loaded.config)
    if not keys or loaded.config.nvme_path is not None:
        return []
    fix = "nvme_path: /a/folder/on/a/local/drive"
    return [_at(loaded, keys[0], "nvme_path does not say on which drive", "nvme", fix)]


def drive_bytes(setup: Setup) -> float:
    """On the drive of each node: masters, moments and gradients of what is trained, and weights.

    DeepSpeed writes gradients there too, where a parameter's have a MiB or more (swap_tensor/optimizer_utils.py).
    """
    states, share = States(setup), setup.profile.gpus_per_node / setup.shard_ranks
    held = 0.0
    if setup.offload_optimizer == "nvme":
        held += (setup.optimizer.state_bytes + 4 + 4) * states.trained * share
    if setup.offload_params == "nvme":
        held += DTYPE_BYTES[setup.dtypes.compute] * states.whole_elements * share
    return held


def buffer_bytes(setup: Setup) -> float:
    """Of one rank in host memory: what passes through on its way to the drive and back."""
    linears = [
        linear.inputs * linear.outputs * linear.count for layer, _ in setup.facts.layers for linear in layer.linears
    ]
    largest = max([setup.facts.embedding_parameters, *linears]) / setup.shard_ranks
    trained = States(setup).trained / setup.shard_ranks
    held = 0.0
    if setup.offload_optimizer == "nvme":
        held += 4 * STATE_BUFFERS * min(trained, max(SUB_GROUP_ELEMENTS, largest))
    if setup.offload_params == "nvme":
        held += PARAMETER_BUFFERS * DTYPE_BYTES[setup.dtypes.compute] * largest
    return held


def drive_problem(folder: Path, needed_bytes: float) -> str | None:
    """Why a folder of this machine cannot hold so much; None where it can. Leaves nothing behind."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return f"{there} is no folder"
    if problem := _not_written(there):
        return problem
    free = shutil.disk_usage(there).free
    if free < needed_bytes:
        return f"has {memory(free / GIB)} free, and the run keeps {memory(needed_bytes / GIB)} there"
    return None


def _not_written(folder: Path) -> str | None:
    """By a file without a name that is opened as DeepSpeed opens its own: past the page cache."""
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT, 0o600))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return "takes no direct I/O (O_DIRECT): it is no drive (tmpfs lies in memory)"
        unnamed = error.errno in (errno.EOPNOTSUPP, errno.EISDIR) and os.access(folder, os.W_OK | os.X_OK)
        return None if unnamed and not _is_kernels(folder) else f"cannot be written: {error.strerror}"
    return None


def _is_kernels(folder: Path) -> bool:
    """Where everybody may write by its mode, and nobody can."""
    return folder.parts[:2] in (("/", "proc"), ("/", "sys"))


def refuse_bad_drive(loaded: Loaded, setup: Setup) -> None:
    """BadInput where `nvme_path`, looked at on this machine, cannot hold what the plan keeps there."""
    config = loaded.config
    if not asked(config) or config.nvme_path is None:
        return
    problem = drive_problem(Path(config.nvme_path).expanduser(), drive_bytes(setup))
    if problem:
        fix = "name a folder on a local drive with room, or offload to cpu"
        raise _at(loaded, "nvme_path", problem, config.nvme_path, fix)


def words(setup: Setup, config: Config) -> tuple[str, ...]:
    """What a plan says of the drive."""
    if not asked(config):
        return ()
    told = memory(drive_bytes(setup) / GIB)
    return (f"{' and '.join(asked(config))} on a drive: {told} in {config.nvme_path or 'nvme_path'} of each node",)


def as_json(setup: Setup) -> Mapping[str, float]:
    """Of plan.json, where a drive is used."""
    taken = drive_bytes(setup)
    return {"nvme_gib": taken / GIB} if taken else {}


def _at(loaded: Loaded, key: str, message: str, value: object, fix: str, allowed: str | None = None) -> BadInput:
    return error_at(loaded.origin(key), key, message, value=value, fix=fix, allowed=allowed)
