"""Muon by DeepSpeed: hidden matrices step along their orthogonalised momentum, all else by AdamW."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from dtrain.config.schema import Config

MOMENTUM = 0.95
"""Jordan 2024 (kellerjordan.github.io/posts/muon), and DeepSpeed's default."""
RMS_OF_ADAMW = 0.2
"""Moonlight (arXiv 2502.16982, section 2.2): steps of this root mean square; AdamW's learning rate and decay hold."""


def muon(config: Config, others: list[dict[str, Any]], matrices: list[nn.Parameter]) -> torch.optim.Optimizer:
    """`others`: groups for AdamW, as for any optimizer; `matrices`: what Muon steps, whole or sharded by ZeRO-3."""
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    if not torch.cuda.is_available():
        torch.compiler.set_stance("force_eager")  # compiling takes 5 to 13 s a shape, and a C++ compiler
    adam = {"betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_epsilon, "use_muon": False}
    groups: list[dict[str, Any]] = [
        {"params": same, "weight_decay": config.weight_decay / scale, "rate_scale": scale,
         "lr": config.learning_rate * scale, "momentum": MOMENTUM, "use_muon": True}
        for scale, same in _by_scale(matrices)
    ]  # fmt: skip
    groups += [{"lr": config.learning_rate, **adam, **group} for group in others]
    for group in groups:
        for parameter in group["params"]:
            parameter.use_muon = group["use_muon"]  # what DeepSpeed's ZeRO stages look at
    made: torch.optim.Optimizer = MuonWithAuxAdam(groups)
    return made


def _by_scale(matrices: list[nn.Parameter]) -> list[tuple[float, list[nn.Parameter]]]:
    """Matrices by what their learning rate is multiplied with: 0.2·√(larger side), of which DeepSpeed's own factor
    √(rows / columns, if above 1) is a part."""
    found: dict[float, list[nn.Parameter]] = defaultdict(list)
    for matrix in matrices:
        found[RMS_OF_ADAMW * math.sqrt(shape_of(matrix)[1])].append(matrix)
    return list(found.items())


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Trained matrices but the embedding's and the head's, whose rows are vectors of their own."""
    ends = {id(parameter) for module in model.modules() if isinstance(module, nn.Embedding)
            for parameter in module.parameters()}  # fmt: skip
    head = getattr(getattr(model, "model", model), "get_output_embeddings", lambda: None)()
    ends |= {id(parameter) for parameter in head.parameters()} if head is not None else set()
    return [
        parameter for parameter in model.parameters()
        if parameter.requires_grad and id(parameter) not in ends and len(shape_of(parameter)) == 2
    ]  # fmt: skip


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """Of the whole parameter, also where ZeRO-3 has sharded it."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
