"""`rope_scaling`: the model's config as transformers spells it, and dynamic scaling that follows from a row alone."""

from __future__ import annotations

import math
from typing import Any

from dtrain.config.schema import RopeScaling
from dtrain.errors import BadInput

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""Of Llama 3.1 itself."""


def scale(described: Any, scaling: RopeScaling) -> None:
    """Write `rope_parameters` into a model's config (transformers 5), and the positions that follow from them.

    Dynamic scaling keeps the model's own number of positions: transformers scales by what goes beyond it.
    """
    text = described.get_text_config()
    before = dict(getattr(text, "rope_parameters", None) or {})
    if "rope_theta" not in before:
        raise BadInput(
            f"{type(described).__name__} has not one rotation for all its layers, which a scaling could change",
            key="rope_scaling", fix="leave rope_scaling out",
        )  # fmt: skip
    original = scaling.original_max_position_embeddings or before.get("original_max_position_embeddings")
    original = int(original or text.max_position_embeddings)
    told: dict[str, Any] = {"rope_type": scaling.type, "rope_theta": before["rope_theta"], "factor": scaling.factor}
    if "partial_rotary_factor" in before:
        told["partial_rotary_factor"] = before["partial_rotary_factor"]
    if scaling.type in ("yarn", "llama3"):
        told["original_max_position_embeddings"] = original
    told |= LLAMA3 if scaling.type == "llama3" else {}
    said = scaling.model_dump(exclude_none=True, exclude={"type", "factor", "original_max_position_embeddings"})
    text.rope_parameters = told | said
    text.max_position_embeddings = original if scaling.type == "dynamic" else math.floor(scaling.factor * original)


def refuse_mixed_rows(described: Any, window: int, shares_rows: bool) -> None:
    """BadInput where rows of one micro-batch would be rotated by the longest of them (dynamic, longrope), and a window
    is long enough for that to matter."""
    text = described.get_text_config()
    told = getattr(text, "rope_parameters", None) or {}
    original = int(told.get("original_max_position_embeddings") or text.max_position_embeddings)
    if told.get("rope_type") in ("dynamic", "longrope") and shares_rows and window > original:
        raise BadInput(
            f"this model rotates by the length at hand ({told['rope_type']}) beyond {original} tokens, so rows cannot "
            "share a micro-batch",
            key="sequence_len", value=window,
            fix=f"micro_batch_size: 1 and sample_packing: false, or sequence_len: {original}",
        )  # fmt: skip


def forget_rows(model: Any) -> None:
    """transformers keeps dynamic frequencies of the longest row so far: begin each forward pass from the original
    ones, so that what is computed does not depend on what came before."""
    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            module.register_forward_pre_hook(_forget)


def _forget(module: Any, _: Any) -> None:
    module.max_seq_len_cached = module.original_max_seq_len
    module.inv_freq = module.original_inv_freq.to(module.inv_freq.device)
