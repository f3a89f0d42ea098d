"""Work of a block that is no matmul: bytes that norms, rotation, activations and residuals move, and kernel launches.

Bytes are per token, counted from the kernels as transformers writes them (each eager kernel reads its inputs and
writes its output once), for 2-byte activations; fp32 activations cost twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from dtrain.models.facts import Layer, ModelFacts

EAGER_RMS_FORWARD = 34
"""Bytes per element: cast to fp32 (2+4), square (4+4), mean (4), scale (4+4), cast back (4+2), weight (2+2)."""
EAGER_RMS_BACKWARD = 56
FUSED_NORM_FORWARD = 4
FUSED_NORM_BACKWARD = 8
"""Read the input and its gradient, write the gradient, reread for the weights' gradient."""
EAGER_ROPE = 22
"""Per element of queries and keys: two products, a half-turned copy, a sum; the same again backward."""
FUSED_ROPE = 4
RESIDUAL = 6
"""Two reads and a write of a sum of two streams; compiled code adds inside the norm's kernel and only writes."""
COMPILED_RESIDUAL = 2
LAUNCH_SECONDS = 8e-6
"""Of a CPU thread to send one eager kernel, Python and autograd included: 0.55 ms for the forward of a Llama block of
66 kernels that cost nothing (measured here: one thread, torch 2.13, transformers 5.23)."""


@dataclass(frozen=True)
class Traffic:
    """Of one block, per token, forward and backward; kernels are per block and pass."""

    forward: float
    backward: float
    forward_kernels: float
    backward_kernels: float


@lru_cache(maxsize=4096)
def layer_traffic(facts: ModelFacts, layer: Layer, compiled: bool, fused: bool) -> Traffic:
    """Bytes of one block's elementwise kernels for one token."""
    lean = compiled or fused
    norm = _norms(facts, layer, lean)
    rope = 0.0 if facts.learned_position_parameters else (FUSED_ROPE if lean else EAGER_ROPE) * _rotated(facts)
    act = _activation(facts, layer, lean)
    routed = _routing(facts, layer)
    residual = 2 * facts.hidden_size * (COMPILED_RESIDUAL if compiled else RESIDUAL)
    kernels = (18 if compiled else 30 if fused else 52) + 2 * len(layer.linears)
    return Traffic(
        forward=norm[0] + rope + act[0] + residual + routed,
        backward=norm[1] + rope + act[1] + residual + 1.3 * routed,
        forward_kernels=float(kernels),
        backward_kernels=1.4 * kernels,
    )


def _rotated(facts: ModelFacts) -> float:
    return float(facts.head_dim * (facts.heads + facts.kv_heads))


def _norms(facts: ModelFacts, layer: Layer, lean: bool) -> tuple[float, float]:
    width = layer.norms * facts.hidden_size + (_rotated(facts) if facts.qk_norm != "none" else 0.0)
    if lean or facts.norm == "layer":
        return FUSED_NORM_FORWARD * width, FUSED_NORM_BACKWARD * width
    return EAGER_RMS_FORWARD * width, EAGER_RMS_BACKWARD * width


def _activation(facts: ModelFacts, layer: Layer, lean: bool) -> tuple[float, float]:
    """Gated: silu (2+2) and a product (4+2) forward; backward the product's two (6+6) and silu's (6)."""
    inner = inner_width(facts, layer)
    if not facts.gated_mlp:
        return 4 * inner, 6 * inner
    return (6 * inner, 10 * inner) if lean else (10 * inner, 18 * inner)


def _routing(facts: ModelFacts, layer: Layer) -> float:
    """Tokens gathered by expert (2+2), weighted (2+2) and summed again (2+2), once per expert a token uses."""
    sparse = any(linear.count > 1 for linear in layer.linears)
    return 12.0 * facts.experts_per_token * facts.hidden_size if sparse else 0.0


def inner_width(facts: ModelFacts, layer: Layer) -> float:
    """Channels of the MLP that one token passes, all its experts together."""
    downs = [one for one in layer.linears if one.outputs == facts.hidden_size]
    return float(sum(one.inputs * one.active for one in downs[1:])) if len(downs) > 1 else 4.0 * facts.hidden_size
