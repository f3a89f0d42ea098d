"""What the planner decided: the numbers a worker trains with. The `choice` of plan.json, field for field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Precision = Literal["fp32", "tf32", "bf16", "fp16"]


@dataclass(frozen=True)
class Choice:
    zero_stage: int
    offload_optimizer: Literal["none", "cpu", "nvme"]
    offload_params: Literal["none", "cpu", "nvme"]
    micro_batch_size: int
    """Sequences (packed rows when packing) per rank per forward pass."""
    gradient_accumulation_steps: int
    global_batch_size: int
    """Sequences per optimizer step over all data-parallel ranks."""
    gradient_checkpointing: Literal["none", "full", "selective", "offload"]
    sequence_parallel_size: int
    attention: str
    """The back end planned for; on the machine, `auto` takes the best that really works and says so."""
    cross_entropy: Literal["eager", "chunked", "compiled", "fused"]
    precision: Precision
    optimizer: str
    adapter: str | None
    sequence_len: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Choice:
        """Keys that a newer dtrain wrote are left aside; a missing one is a KeyError."""
        return cls(**{field.name: document[field.name] for field in fields(cls)})
