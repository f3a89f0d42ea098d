"""Dense families of Llama's shape: separate projections, a gated MLP, differing in biases, norms and windows."""

from __future__ import annotations

from collections.abc import Sequence

from dtrain.models.blocks import (
    Dims,
    QkNorm,
    assemble,
    fused_attention,
    gated_mlp,
    qk_norm_parameters,
    separate_attention,
    usual_dims,
    windows,
)
from dtrain.models.facts import Layer, Linear, ModelFacts
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


def qwen3(figures: Figures) -> ModelFacts:
    dims = usual_dims(figures)
    bias = figures.flag("attention_bias")
    look_back = late_windows(figures, dims.layers)
    return decoder(figures, dims, qkv_bias=bias, out_bias=bias, qk_norm="head", look_back=look_back)


def smollm3(figures: Figures) -> ModelFacts:
    """Every fourth layer has no rotation; with `use_sliding_window` those are the ones that slide."""
    dims = usual_dims(figures)
    every = figures.count("no_rope_layer_interval")
    slides = (figures.flag("use_sliding_window") and (index + 1) % every == 0 for index in range(dims.layers))
    bias = figures.flag("attention_bias")
    look_back = windows(figures, dims.layers, slides)
    return decoder(figures, dims, qkv_bias=bias, out_bias=bias, mlp_bias=figures.flag("mlp_bias"), look_back=look_back)


def gemma(figures: Figures) -> ModelFacts:
    """Llama's block, tied, with a GELU gate (transformers reads Gemma's old `gelu` as its tanh form)."""
    bias = figures.flag("attention_bias")
    return decoder(figures, usual_dims(figures), qkv_bias=bias, out_bias=bias, activation="gelu_pytorch_tanh")


def gemma2(figures: Figures) -> ModelFacts:
    """Norms before and after attention and MLP; every second layer slides."""
    dims = usual_dims(figures)
    bias = figures.flag("attention_bias")
    look_back = windows(figures, dims.layers, (index % 2 == 0 for index in range(dims.layers)))
    return decoder(figures, dims, qkv_bias=bias, out_bias=bias, norms=4, look_back=look_back)


def gemma3(figures: Figures) -> ModelFacts:
    """As Gemma 2, with a norm on queries and keys; all but every sixth layer slide."""
    dims = usual_dims(figures)
    bias = figures.flag("attention_bias")
    every = figures.count("sliding_window_pattern", otherwise=6)
    look_back = windows(figures, dims.layers, ((index + 1) % every != 0 for index in range(dims.layers)))
    return decoder(figures, dims, qkv_bias=bias, out_bias=bias, qk_norm="head", norms=4, look_back=look_back)


def olmo2(figures: Figures) -> ModelFacts:
    """Norms after attention and MLP, and one over all queries and over all keys together."""
    bias = figures.flag("attention_bias")
    return decoder(figures, usual_dims(figures), qkv_bias=bias, out_bias=bias, qk_norm="full")


def olmo3(figures: Figures) -> ModelFacts:
    """OLMo 2's block; all but every fourth layer slide."""
    dims = usual_dims(figures)
    bias = figures.flag("attention_bias")
    look_back = windows(figures, dims.layers, ((index + 1) % 4 != 0 for index in range(dims.layers)))
    return decoder(figures, dims, qkv_bias=bias, out_bias=bias, qk_norm="full", look_back=look_back)


def phi3(figures: Figures) -> ModelFacts:
    """Llama's block with fused projections: `qkv_proj` and `gate_up_proj`."""
    dims = usual_dims(figures)
    linears = (
        *fused_attention(dims, "qkv_proj", "o_proj", bias=False, out_bias=False),
        Linear("gate_up_proj", dims.hidden, 2 * dims.intermediate),
        Linear("down_proj", dims.intermediate, dims.hidden),
    )
    block = Layer(linears, 2 * dims.hidden, 2, figures.maybe("sliding_window"))
    return assemble(figures, dims, [block] * dims.layers, activation=figures.text("hidden_act"))
