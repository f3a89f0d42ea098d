"""Norms: what they keep for backward and what their backward needs, in bytes per element.

transformers writes most norms in Python, on an fp32 copy of their input; which of its steps autograd keeps differs
from family to family (read in transformers 5.23, `models/*/modeling_*.py`, and checked by the trace).
"""

from __future__ import annotations

from dtrain.models.facts import Layer
from dtrain.planner.activation_key import ActivationKey

FP32_WEIGHTED = frozenset({"gemma", "gemma2", "gemma3_text", "olmo2", "olmo3"})
"""RMS norms that multiply by their weight in fp32, and so keep the normalised value in fp32."""
FP32_LAYER_NORMS = frozenset({"olmo"})
"""F.layer_norm on an fp32 copy of the input."""
WRITTEN_OUT_LAYER_NORMS = frozenset({"cohere"})
"""LayerNorm in Python: x - mean and its normalised value, both in fp32, and the input's fp32 copy."""


def norms_saved(key: ActivationKey, layer: Layer) -> float:
    """Of one block, bytes per token. Two norms on one input (parallel residual) keep it once."""
    kept = layer.norms * norm_saved(key)
    if key.facts.parallel_residual and layer.norms > 1 and keeps_norm_input(key):
        kept -= (layer.norms - 1) * key.width
    return kept * key.facts.hidden_size / key.stream_ways


def is_one_kernel(key: ActivationKey) -> bool:
    """torch's LayerNorm, a fused kernel or compiled code: only the input is kept."""
    python = key.facts.norm == "rms" or key.facts.family in FP32_LAYER_NORMS | WRITTEN_OUT_LAYER_NORMS
    return key.fused or key.compiled or not python


def keeps_norm_input(key: ActivationKey) -> bool:
    """Whether a norm keeps its input, instead of an fp32 copy of it."""
    return is_one_kernel(key) or key.width >= key.norm_width


def norm_saved(key: ActivationKey) -> float:
    """Bytes a norm keeps per element, its output aside: an fp32 copy, and the normalised value when it is trained."""
    if is_one_kernel(key):
        return key.width
    wide = max(key.width, key.norm_width)
    if key.facts.family in FP32_LAYER_NORMS:
        return wide
    if key.facts.family in WRITTEN_OUT_LAYER_NORMS:
        return wide * (3 if key.trained else 2)
    normalised = wide if key.facts.family in FP32_WEIGHTED else key.width
    return wide + (normalised if key.trained else 0)


def norm_working(key: ActivationKey) -> float:
    """Bytes per element alive in a norm's backward: four fp32 tensors and one 16-bit where it is written in Python."""
    if is_one_kernel(key):
        return 3 * key.width
    return key.width + 4 * max(key.norm_width, key.width)
