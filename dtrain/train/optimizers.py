"""The optimizer of a run, by Axolotl's names, and which parameters it decays."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from dtrain.config.schema import Config
from dtrain.errors import BadInput
from dtrain.train.muon import hidden_matrices, muon
from dtrain.train.partitions import inner_optimizer

BITSANDBYTES = {
    "adamw_bnb_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit", "paged_adamw_32bit": "PagedAdamW32bit",
    "lion_8bit": "Lion8bit", "paged_lion_8bit": "PagedLion8bit", "lion_32bit": "Lion32bit",
    "paged_lion_32bit": "PagedLion32bit",
}  # fmt: skip
"""Classes of bitsandbytes.optim. On a CPU, paged states lie in memory like others."""


def optimizer_for(config: Config, model: nn.Module, on_cpu: bool) -> torch.optim.Optimizer:
    """`on_cpu`: its states live in host memory. BadInput for what launch does not run."""
    name = config.optimizer
    groups = parameter_groups(model, config.weight_decay)
    betas, rate = (config.adam_beta1, config.adam_beta2), config.learning_rate
    if name == "adamw_torch":
        # foreach would hold one more copy of the parameters at the step, for nothing: ZeRO steps one flat tensor
        return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=config.adam_epsilon, foreach=False)
    if name == "adamw_torch_fused":
        return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=config.adam_epsilon, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=rate)
    if name == "adafactor":
        return _adafactor(groups, rate)
    if name == "muon":
        matrices = hidden_matrices(model)
        return muon(config, _without(groups, matrices), matrices)
    if name in BITSANDBYTES:
        return _bitsandbytes(config, groups, on_cpu)
    raise BadInput(
        "not supported by launch yet", key="optimizer", value=name,
        allowed=["adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "muon", *BITSANDBYTES],
    )  # fmt: skip


def _bitsandbytes(config: Config, groups: list[dict[str, Any]], on_cpu: bool) -> torch.optim.Optimizer:
    import bitsandbytes

    if on_cpu and torch.cuda.is_available():
        raise BadInput(
            "its states cannot be offloaded", key="optimizer", value=config.optimizer,
            fix="set `optimizer: adamw_torch` or `offload_optimizer: none`",
        )  # fmt: skip
    told: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.adam_beta1, config.adam_beta2)}
    if "adamw" in config.optimizer:
        told["eps"] = config.adam_epsilon
    made: torch.optim.Optimizer = getattr(bitsandbytes.optim, BITSANDBYTES[config.optimizer])(groups, **told)
    return made


def _adafactor(groups: list[dict[str, Any]], rate: float) -> torch.optim.Optimizer:
    """As transformers' Trainer sets it: the learning rate is the schedule's, not its own."""
    from transformers.optimization import Adafactor

    made: torch.optim.Optimizer = Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False)
    return made


def _without(groups: list[dict[str, Any]], taken: list[nn.Parameter]) -> list[dict[str, Any]]:
    """The groups less some parameters, as far as anything is left of them."""
    gone = {id(parameter) for parameter in taken}
    left = [{**group, "params": [one for one in group["params"] if id(one) not in gone]} for group in groups]
    return [group for group in left if group["params"]]


def page_again(optimizer: Any) -> None:
    """After a checkpoint was read: states of a paged optimizer go back into paged memory (bitsandbytes' own rule)."""
    inner = inner_optimizer(optimizer)
    if not getattr(inner, "is_paged", False):
        return
    for parameter, states in inner.state.items():
        for kind, value in states.items():
            if kind in ("state1", "state2") and not getattr(value, "is_paged", False):
                states[kind] = inner.get_state_buffer(parameter, dtype=value.dtype).copy_(value)  # type: ignore[attr-defined]


NOT_DECAYED = re.compile(r"(^|\.)bias$|norm|(^|\.)ln_", re.IGNORECASE)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters; norms and biases are not decayed (transformers' rule). One group when nothing decays."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if weight_decay == 0:
        return [{"params": [parameter for _, parameter in trained], "weight_decay": 0.0}]
    return [
        {"params": [p for name, p in trained if not NOT_DECAYED.search(name)], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if NOT_DECAYED.search(name)], "weight_decay": 0.0},
    ]
