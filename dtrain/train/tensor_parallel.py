"""Tensor parallel: each layer's matrices are cut over the ranks of a group by DeepSpeed's AutoTP (ZeRO 0 to 2).

The matrices that a block begins with are cut by rows (each rank computes some of the heads, some of the inner width),
those that end it by columns, and one sum over the group completes it (Megatron's way). Norms, embedding and head are
whole on each rank. AutoTP is told which is which by name; its own guesses by substrings are not asked.

Ranks of a group see the same rows and say the same loss. A cut parameter is marked with its `Part`, so that checkpoints
and the exported model know where it belongs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BEGIN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
END = ("o_proj", "down_proj")
NORMS_OF_HEADS = ("q_norm", "k_norm")
"""Whole on each rank, but applied to its heads only: their gradients are summed over the group."""


def autotp_section(size: int) -> dict[str, Any]:
    """DeepSpeed's config of it, for models with Llama's names of layers; nothing for a group of one."""
    if size == 1:
        return {}

    def named(names: tuple[str, ...], **told: Any) -> dict[str, Any]:
        return {"patterns": [rf".*\.({'|'.join(names)})\.weight$"], **told}

    layers = [
        named(BEGIN, partition_type="column"),
        named(END, partition_type="row"),
        named(NORMS_OF_HEADS, partition_type="skip", grad_allreduce=True),
    ]
    plan = {"use_default_specs": False, "layer_specs": layers}
    return {"tensor_parallel": {"autotp_size": size, "partition_config": plan}}


@dataclass(frozen=True)
class Part:
    """Which part of a parameter this rank holds: the `index`-th of `size` equal cuts along `dim`."""

    dim: int
    index: int
    size: int

    def named(self, name: str) -> str:
        """The name of this part in a checkpoint."""
        return f"{name}@{self.dim}.{self.index}.{self.size}"

    def gathered(self, mine: Tensor) -> Tensor:
        """The whole parameter. A collective of the group."""
        from deepspeed.utils import groups

        parts = [torch.empty_like(mine) for _ in range(self.size)]
        torch.distributed.all_gather(parts, mine.contiguous(), group=groups.get_tensor_model_parallel_group())
        return torch.cat(parts, dim=self.dim)


def part_of(parameter: Tensor) -> Part | None:
    """None of a parameter that is whole on each rank."""
    return getattr(parameter, "dtrain_part", None)


def parts_in(name: str, stored_names: Iterable[str]) -> list[Part]:
    """The parts of a parameter that a checkpoint has, in order; none where it has the whole."""
    found = (re.fullmatch(re.escape(name) + r"@(\d+)\.(\d+)\.(\d+)", stored) for stored in stored_names)
    return sorted((Part(*map(int, match.groups())) for match in found if match), key=lambda part: part.index)


def mark_parts(engine: Any, index: int, size: int) -> None:
    """After `deepspeed.initialize`: tell each parameter that AutoTP has cut which part of it is here."""
    if size == 1:
        return
    # it compares the first batch of all ranks of a group, cannot read ours, and they follow from one schedule
    engine.first_dataloader_check.remove()
    for name, parameter in engine.module.named_parameters():
        if getattr(parameter, "tensor_model_parallel", False):
            ends = name.split(".")[-2] in END
            parameter.dtrain_part = Part(1 if ends else 0, index, size)


def total_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The norm of all gradients of the model: cut ones are added up over the group, whole ones counted once."""
    whole: list[Tensor] = []
    cut: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None:
            (cut if part_of(parameter) else whole).append(parameter.grad)
    norm = nn.utils.get_total_norm(whole, foreach=False)
    if not cut:
        return norm
    from deepspeed.utils import groups

    squares = nn.utils.get_total_norm(cut, foreach=False).square()
    torch.distributed.all_reduce(squares, group=groups.get_tensor_model_parallel_group())
    return (norm.square() + squares).sqrt()
