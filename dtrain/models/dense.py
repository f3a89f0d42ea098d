"""Dense families of Llama's shape: separate projections, a gated MLP, differing in biases, norms and windows."""

from __future__ import annotations

from collections.abc import Sequence

from dtrain.models.blocks import (
    Dims,
    QkNorm,
    assemble,
    gated_mlp,
    qk_norm_parameters,
    separate_attention,
    usual_dims,
    windows,
)
from dtrain.models.facts import Layer, ModelFacts
from dtrain.models.figures import Figures


def decoder(
    figures: Figures,
    dims: Dims,
    *,
    qkv_bias: bool = False,
    out_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: QkNorm = "none",
    norms: int = 2,
    look_back: Sequence[int | None] | None = None,
    activation: str = "",
) -> ModelFacts:
    """Llama's block with what a family changes. `norms` counts RMS norms over the hidden size per block."""
    linears = separate_attention(dims, bias=qkv_bias, out_bias=out_bias)
    linears += gated_mlp(dims.hidden, dims.intermediate, bias=mlp_bias)
    norm_parameters = norms * dims.hidden + qk_norm_parameters(dims, qk_norm)
    blocks = (Layer(linears, norm_parameters, norms, window) for window in look_back or [None] * dims.layers)
    activation = activation or figures.text("hidden_act", "hidden_activation", otherwise="silu")
    return assemble(figures, dims, blocks, activation=activation, qk_norm=qk_norm)


def llama(figures: Figures) -> ModelFacts:
    """Llama 1 to 3.3 and its many relatives (SmolLM3's layers without rotation weigh the same)."""
    bias = figures.flag("attention_bias")
    return decoder(figures, usual_dims(figures), qkv_bias=bias, out_bias=bias, mlp_bias=figures.flag("mlp_bias"))


def mistral(figures: Figures) -> ModelFacts:
    dims = usual_dims(figures)
    return decoder(figures, dims, look_back=[figures.maybe("sliding_window")] * dims.layers)


def late_windows(figures: Figures, layers: int) -> list[int | None]:
    """Qwen's rule: only with `use_sliding_window`, only from layer `max_window_layers` on."""
    if not figures.flag("use_sliding_window"):
        return [None] * layers
    first = figures.count("max_window_layers", least=0)
    return windows(figures, layers, (index >= first for index in range(layers)))


def qwen2(figures: Figures) -> ModelFacts:
    """Biases on queries, keys and values only."""
    dims = usual_dims(figures)
    return decoder(figures, dims, qkv_bias=True, look_back=late_windows(figures, dims.layers))
