"""What each optimizer keeps and what its step needs, in bytes per parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class OptimizerSpec:
    """States of one optimizer. Bytes are per trained parameter, counted over the ranks that share it."""

    name: str
    state_bytes: float
    """Kept between steps for a matrix parameter (first and second moment, block scales)."""
    vector_state_bytes: float
    """Kept for what is no matrix (norms, biases), and for tensors too small to quantise."""
    step_bytes: float
    """Alive only inside the step: temporaries of foreach kernels; 0 for fused ones."""
    flat_step_bytes: float = 0
    """The same where ZeRO hands it one flat tensor, stepped by the single-tensor kernels."""
    paged: bool = False
    """States live in unified memory: host RAM that the card sees, outside torch's allocator."""
    factored: bool = False
    """The second moment of a matrix is a row and a column; needs the matrix whole (no flat ZeRO partition)."""
    hidden_only: bool = False
    """`state_bytes` is for the blocks' matrices; embedding, head and vectors have `vector_state_bytes`."""
    as_masters: bool = False
    """Its moments have the type of the masters that it steps; others' are fp32 or 8-bit always."""
    in_backward: bool = False
    """The step of a parameter runs as its gradient arrives, so gradients never exist together."""

    def with_state_dtype(self, bytes_per_moment: float) -> OptimizerSpec:
        """The same optimizer with its moments held in another type (`plan_as.optimizer_state_dtype`).

        The step's temporaries are copies of moments, in their type.
        """
        scale = bytes_per_moment / 4
        scaled = {name: scale * getattr(self, name) for name in MOMENT_FIGURES}
        return replace(self, **scaled)


MOMENT_FIGURES = ("state_bytes", "vector_state_bytes", "step_bytes", "flat_step_bytes")

_BNB_SCALES = 4 / 256  # bitsandbytes: one fp32 absmax per block of 256 (functional.py, blocksize=256 for optimizers)
_AO_8BIT_SCALES = 4 / 256  # torchao/optim/adam.py: block_size 256
_AO_4BIT_SCALES = 4 / 128  # torchao/optim/adam.py: block_size 128
_FOREACH = 4.0  # torch/optim/adamw.py _multi_tensor_adamw: `_foreach_sqrt` makes one more copy of a moment
_SINGLE = 8.0  # _single_tensor_adamw: the square root and its quotient, both whole, before addcdiv

OPTIMIZERS: Mapping[str, OptimizerSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            OptimizerSpec("adamw_torch", 8, 8, _FOREACH, flat_step_bytes=_SINGLE, as_masters=True),
            OptimizerSpec("adamw_torch_fused", 8, 8, 0, as_masters=True),
            OptimizerSpec("adamw_bnb_8bit", 2 + 2 * _BNB_SCALES, 8, 0),
            OptimizerSpec("paged_adamw_8bit", 2 + 2 * _BNB_SCALES, 8, 0, paged=True),
            OptimizerSpec("paged_adamw_32bit", 8, 8, 0, paged=True),
            OptimizerSpec("adamw_torch_8bit", 2 + 2 * _AO_8BIT_SCALES, 8, 0),
            OptimizerSpec("adamw_torch_4bit", 1 + 2 * _AO_4BIT_SCALES, 8, 0),
            OptimizerSpec("adamw_torch_fp8", 2 + 2 * _AO_8BIT_SCALES, 8, 0),
            OptimizerSpec("lion_8bit", 1 + _BNB_SCALES, 4, 0),
            OptimizerSpec("paged_lion_8bit", 1 + _BNB_SCALES, 4, 0, paged=True),
            OptimizerSpec("lion_32bit", 4, 4, 0),
            OptimizerSpec("paged_lion_32bit", 4, 4, 0, paged=True),
            OptimizerSpec("adafactor", 4, 4, 0, factored=True),
            OptimizerSpec("muon", 4, 8, 4, flat_step_bytes=4, hidden_only=True),
            OptimizerSpec("sgd", 0, 0, 0),
        )
    }
)
"""By the names of `optimizer:`. Adafactor's 4 bytes hold where ZeRO hands it flat partitions."""

StateDtype = Literal["fp32", "bf16", "fp16", "int8", "int4"]
MOMENT_BYTES: Mapping[str, float] = MappingProxyType(
    {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1 + _AO_8BIT_SCALES, "int4": 0.5 + _AO_4BIT_SCALES}
)


def optimizer_spec(name: str, state_dtype: str | None = None, in_backward: bool = False) -> OptimizerSpec:
    """The spec of a named optimizer, its moments in `state_dtype` where another framework holds them so."""
    spec = OPTIMIZERS[name]
    if state_dtype is not None:
        spec = spec.with_state_dtype(MOMENT_BYTES[state_dtype])
    return replace(spec, in_backward=in_backward)
