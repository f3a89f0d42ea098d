"""Whether a checkpoint belongs to the run as it is now: a step's number must mean the same rows, and the same code."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

from dtrain.config.schema import Config
from dtrain.errors import BadInput
from dtrain.own_process import accepts_changes
from dtrain.planner.choice import Choice
from dtrain.planner.plan import versions
from dtrain.train.checkpoint import Checkpoint

CUT, MASTERS = "tensor_parallel_size", "master_weights"
MODEL_CODE = "model_code"
"""Beside versions: a hash of the code that came with the model (`trust_remote_code`)."""


def facts(config: Config, choice: Choice) -> dict[str, Any]:
    """What decides, beside the rows themselves, which of them each step trains on, and how the matrices are cut."""
    return {
        "global_batch_size": choice.global_batch_size, "sequence_len": choice.sequence_len,
        "sample_packing": config.sample_packing, "shuffle": config.shuffle, "seed": config.seed,
        CUT: config.tensor_parallel_size, MASTERS: config.master_weights or "fp32",
    }  # fmt: skip


def code_of(model: Any) -> dict[str, str | None]:
    """The code that trains: versions of libraries, and of a model's own code a hash."""
    own = type(model).__module__.startswith("transformers_modules")
    return {**versions(), **({MODEL_CODE: _hash_beside(inspect.getfile(type(model)))} if own else {})}


def _hash_beside(file: str) -> str:
    """Of all Python files in the folder of one; transformers copies a model's code into a folder of its own."""
    digest = hashlib.sha256()
    for path in sorted(Path(file).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def refuse_other(config: Config, choice: Choice, found: Checkpoint, code: dict[str, str | None]) -> None:
    """BadInput when one of the facts changed since the checkpoint, or the code did and `--force` was not said."""
    now = facts(config, choice)
    changed = [name for name, value in found.schedule.items() if name in now and now[name] != value]
    if changed:
        states = {CUT: "its states are of matrices cut otherwise", MASTERS: "its states have another type"}
        why = states.get(changed[0], "the run would see other rows")
        raise BadInput(
            f"changed since the checkpoint was written: {why}", key=changed[0],
            file=str(found.folder), value=now[changed[0]], allowed=found.schedule[changed[0]],
            fix="put it back in the run's config.yaml, or launch a new run",
        )  # fmt: skip
    other = [name for name, version in found.versions.items() if code.get(name) != version]
    if other and not accepts_changes():
        told = ", ".join(f"{name} {found.versions[name]} → {code.get(name)}" for name in other)
        raise BadInput(
            f"the code changed since the checkpoint was written: {told}", file=str(found.folder), key=other[0],
            value=code.get(other[0]), allowed=found.versions[other[0]],
            fix=f"install what it was, or go on with what is here: dtrain resume {found.folder.parents[2]} --force",
        )  # fmt: skip
