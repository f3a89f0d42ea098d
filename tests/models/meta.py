"""What transformers really builds, on the meta device: the truth that ModelFacts are compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from dtrain.models.facts import ModelFacts

Matrix = tuple[str, int, int, bool, int]
"""Name, smaller side, larger side, bias, how many."""


def build(config: Mapping[str, Any]) -> nn.Module:
    told = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(CONFIG_MAPPING[config["model_type"]](**told))
    return model


def config_of(model: Any) -> dict[str, Any]:
    """The config as transformers completes and saves it."""
    told: dict[str, Any] = model.config.to_dict()
    return told


def ends(model: Any) -> tuple[Any, Any]:
    """Head and token embedding."""
    return model.get_output_embeddings(), model.get_input_embeddings()


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def blocks(model: nn.Module) -> nn.ModuleList:
    """The longest list of modules outside other lists: the decoder blocks."""
    lists = [(name, one) for name, one in model.named_modules() if isinstance(one, nn.ModuleList)]
    return min(lists, key=lambda pair: pair[0].count("."))[1]


def matrices(block: nn.Module) -> tuple[Matrix, ...]:
    """Every 2-D weight and stacked 3-D expert parameter of a block."""
    found: list[Matrix] = []
    for path, module in block.named_modules():
        own = dict(module.named_parameters(recurse=False))
        for name, parameter in own.items():
            leaf = path.rpartition(".")[2]
            if "norm" in leaf:
                continue
            if parameter.dim() == 2 and name == "weight":
                small, large = sorted(parameter.shape)
                found.append((leaf, small, large, own.get("bias") is not None, 1))
            elif parameter.dim() == 3:
                small, large = sorted(parameter.shape[1:])
                found.append((f"experts.{name}", small, large, f"{name}_bias" in own, parameter.shape[0]))
            elif isinstance(module, nn.Linear | Conv1D) and parameter.dim() > 2:
                raise AssertionError(f"{path}.{name} has {parameter.dim()} dimensions")
    return tuple(sorted(found))


def real_kinds(model: nn.Module) -> Counter[tuple[Matrix, ...]]:
    return Counter(matrices(block) for block in blocks(model))


def planned_kinds(facts: ModelFacts) -> Counter[tuple[Matrix, ...]]:
    kinds: Counter[tuple[Matrix, ...]] = Counter()
    for layer, count in facts.layers:
        told = [
            (one.name, min(one.inputs, one.outputs), max(one.inputs, one.outputs), one.bias, one.count)
            for one in layer.linears
        ]
        kinds[tuple(sorted(told))] += count
    return kinds


def real_windows(model: nn.Module) -> list[int | None] | None:
    """Per layer what transformers' config says of sliding, or None where the family has no such notion."""
    config: Any = model.config
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None) or None
    if types is not None:
        return [window if one == "sliding_attention" else None for one in types]
    return [window] * config.num_hidden_layers if hasattr(config, "sliding_window") else None


def planned_windows(facts: ModelFacts) -> list[int | None]:
    return [layer.attention_window for layer, count in facts.layers for _ in range(count)]
