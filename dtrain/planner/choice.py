"""What the planner decided: the numbers a worker trains with. The `choice` of plan.json, field for field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from dtrain.errors import BadInput

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
        """Keys that a newer dtrain wrote are left aside. BadInput for what is missing, or of another kind."""
        if not isinstance(document, Mapping):
            raise BadInput("a plan's choice is an object", file="plan.json", key="choice", fix=_PLAN_AGAIN)
        for field in fields(cls):
            if field.name not in document or not _fits(str(field.type), document[field.name]):
                raise BadInput(
                    "cannot be read from the plan", file="plan.json", key=f"choice.{field.name}",
                    value=document.get(field.name), allowed=str(field.type), fix=_PLAN_AGAIN,
                )  # fmt: skip
        return cls(**{field.name: document[field.name] for field in fields(cls)})


_PLAN_AGAIN = "the run's plan.json was changed or damaged: launch the run again, it is planned anew"


def _fits(kind: str, value: Any) -> bool:
    if kind == "int":
        return type(value) is int and 0 <= value < 2**63
    return isinstance(value, str) or ("None" in kind and value is None)
