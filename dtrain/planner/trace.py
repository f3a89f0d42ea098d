"""The closed form beside the real model: what `dtrain plan --trace` compares.

transformers' model with our attention, checkpointing and loss goes forward and backward once on fake CPU tensors, in a
child process (`dtrain.train.trace`). Weights, gradients, ZeRO and offload stay closed-form on top: they are arithmetic.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dtrain.errors import BadInput, PartMissing, RunFailed
from dtrain.hardware.profiles import resolve_profile
from dtrain.planner.logits import loss_bytes
from dtrain.planner.memory import Blocks
from dtrain.planner.setup import DTYPE_BYTES, Setup
from dtrain.units import GIB


@dataclass(frozen=True)
class TraceTerm:
    """One instant of a micro-batch, GiB beside the weights."""

    name: str
    planned_gib: float
    traced_gib: float

    @property
    def error(self) -> float:
        """Planned over traced, less one."""
        return self.planned_gib / self.traced_gib - 1 if self.traced_gib else 0.0

    def as_json(self) -> dict[str, Any]:
        told = {"planned_gib": self.planned_gib, "traced_gib": self.traced_gib, "error": self.error}
        return {"name": self.name, **{key: float(f"{value:.6g}") for key, value in told.items()}}


def trace(setup: Setup, config: Mapping[str, Any]) -> list[TraceTerm]:
    """Compare. `config` is the model's config.json. PartMissing without the training parts; about ten seconds."""
    return trace_all([(setup, config)])[0]


def counted_alone(spec: dict[str, Any]) -> dict[str, Any]:
    """Bytes of one layout, without a closed form beside them. RunFailed where transformers cannot make the model."""
    _require_parts()
    return _in_a_child([spec])[0]


def _require_parts() -> None:
    for part in ("torch", "transformers"):
        if importlib.util.find_spec(part) is None:
            raise PartMissing.of(part, "train", "dtrain plan --trace")


def trace_all(layouts: Sequence[tuple[Setup, Mapping[str, Any]]]) -> list[list[TraceTerm]]:
    """Several layouts in one child process."""
    _require_parts()
    specs = [spec_of(setup, config) for setup, config in layouts]
    counted = _in_a_child(specs)
    return [compared(setup, one) for (setup, _), one in zip(layouts, counted, strict=True)]


def spec_of(setup: Setup, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the child is told. BadInput for what the trace does not cover."""
    if setup.adapter is not None or not config:
        raise BadInput(
            "the trace covers full training of a model whose config is known",
            key="--trace",
            fix="plan without --trace",
        )
    if setup.tensor_parallel_size > 1:
        raise BadInput(
            "the trace is of one rank, and tensor parallel needs several", key="--trace", fix="plan without --trace"
        )
    positions = setup.trained_positions
    return {
        "config": {**config, "model_type": config.get("model_type", setup.facts.family)},
        "dtype": setup.dtypes.compute,
        "attention": "sdpa",
        "checkpointing": setup.checkpointing,
        "tiled_mlp": setup.tiled_mlp,
        "cross_entropy": setup.cross_entropy if setup.cross_entropy == "eager" else "chunked",
        "chunks": -(-positions // setup.cross_entropy_chunk_tokens),
        "rows": setup.micro_batch_size,
        "sequence_len": setup.sequence_len,
        "sequence_parallel_size": setup.sequence_parallel_size,
        "trained_share": setup.trained_share or 1.0,
    }


def _in_a_child(specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    child = subprocess.run(
        [sys.executable, "-m", "dtrain.train.trace"],
        input=json.dumps(specs),
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        last = child.stderr.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        raise RunFailed(f"the trace of the model failed: {last[0]}", fix="plan without --trace")
    counted: list[dict[str, Any]] = json.loads(child.stdout.splitlines()[-1])
    return counted


def compared(setup: Setup, counted: Mapping[str, Any]) -> list[TraceTerm]:
    """The closed form of what was traced: the same layout on the CPU's kernels, without gradients or sharding."""
    alike = replace(
        setup,
        profile=resolve_profile("cpu"),
        attention=counted["attention"],
        cross_entropy="eager" if setup.cross_entropy == "eager" else "chunked",
        packed=setup.micro_batch_size > 1 and not counted["padded"],
    )
    blocks, loss = Blocks.of(alike), loss_bytes(alike)
    head_input = blocks.hidden * (1 + alike.trained_positions / alike.micro_batch_tokens)
    planned = {
        "weights": setup.facts.parameters * DTYPE_BYTES[setup.dtypes.compute],
        "kept": blocks.kept + head_input,
        "loss_peak": blocks.kept + blocks.hidden + loss.forward,
        "backward_peak": blocks.kept + max(loss.backward, blocks.last_norm, blocks.recomputed),
    }
    return [TraceTerm(name, size / GIB, counted[name] / GIB) for name, size in planned.items()]
