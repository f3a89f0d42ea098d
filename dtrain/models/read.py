"""config.json → ModelFacts, by the file's `model_type`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from dtrain.errors import BadInput
from dtrain.models import dense, layernorm, moe
from dtrain.models.facts import ModelFacts
from dtrain.models.figures import Figures

FAMILIES: Mapping[str, Callable[[Figures], ModelFacts]] = {
    "bloom": layernorm.bloom,
    "cohere": layernorm.cohere,
    "deepseek_v2": moe.deepseek,
    "deepseek_v3": moe.deepseek,
    "falcon": layernorm.falcon,
    "gemma": dense.gemma,
    "gemma2": dense.gemma2,
    "gemma3_text": dense.gemma3,
    "gpt2": layernorm.gpt2,
    "gpt_neox": layernorm.gpt_neox,
    "gpt_oss": moe.gpt_oss,
    "gptj": layernorm.gptj,
    "granite": dense.llama,
    "granitemoe": moe.granitemoe,
    "llama": dense.llama,
    "mistral": dense.mistral,
    "mixtral": moe.mixtral,
    "mpt": layernorm.mpt,
    "olmo": layernorm.olmo,
    "olmo2": dense.olmo2,
    "olmo3": dense.olmo3,
    "olmoe": moe.olmoe,
    "opt": layernorm.opt,
    "phi": layernorm.phi,
    "phi3": dense.phi3,
    "qwen2": dense.qwen2,
    "qwen2_moe": moe.qwen2_moe,
    "qwen3": dense.qwen3,
    "qwen3_moe": moe.qwen3_moe,
    "smollm3": dense.smollm3,
    "stablelm": layernorm.stablelm,
    "starcoder2": layernorm.starcoder2,
}
"""transformers' `model_type` → how its blocks are counted."""


def facts_from_config(config: Mapping[str, Any], name: str, source: str) -> ModelFacts:
    """Facts of the causal language model a config.json describes; of a multimodal one, its text part.

    `name` is what people call the model, `source` where the file lies (errors name it). Keys that are absent
    take the family's defaults, as transformers would fill them in. Raises BadInput for an unknown family and
    for figures that are missing or make no sense.
    """
    config = text_part(config, name, source)
    family = family_of(config, name, source)
    return FAMILIES[family](Figures(config, family, name, source))


def text_part(config: Mapping[str, Any], name: str, source: str) -> Mapping[str, Any]:
    """The language model inside a multimodal config; the config itself otherwise."""
    if not isinstance(config, Mapping):
        raise BadInput(f"the config of {name} is no object of keys", file=source, value=type(config).__name__)
    inner = config.get("text_config")
    if not isinstance(inner, Mapping):
        return config
    tied = {"tie_word_embeddings": config["tie_word_embeddings"]} if "tie_word_embeddings" in config else {}
    return {**tied, **inner}


def family_of(config: Mapping[str, Any], name: str, source: str) -> str:
    family = config.get("model_type")
    if not isinstance(family, str):
        raise BadInput(
            f"the config of {name} has no `model_type`",
            file=source,
            key="model_type",
            value=family,
            allowed=", ".join(sorted(FAMILIES)),
            fix=f"add `model_type` to {source}",
        )
    if family not in FAMILIES:
        near = difflib.get_close_matches(family, FAMILIES, n=1)
        raise BadInput(
            f"{name} is of a family dtrain cannot count yet" + (f"; the nearest known is {near[0]}" if near else ""),
            file=source,
            key="model_type",
            value=family,
            allowed=", ".join(sorted(FAMILIES)),
            fix="choose a base_model of a listed family, or count transformers' own model: dtrain plan FILE --trace",
        )
    return family
