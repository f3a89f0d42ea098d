"""Mixtures of experts: Mixtral, Qwen MoE, OLMoE, Granite MoE, gpt-oss, DeepSeek V2 and V3.

Experts are named as transformers 5 holds them: two stacked parameters, `experts.gate_up_proj` and
`experts.down_proj`, which no LoRA target name of a Linear matches.
"""

from __future__ import annotations

from dataclasses import replace

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
from dtrain.models.facts import Layer, Linear, ModelFacts
from dtrain.models.figures import Figures


def experts(dims: Dims, inner: int, count: int, active: int, *, bias: bool = False) -> tuple[Linear, ...]:
    return (
        Linear("experts.gate_up_proj", dims.hidden, 2 * inner, bias, count, active),
        Linear("experts.down_proj", inner, dims.hidden, bias, count, active),
    )


def routing(figures: Figures, count_key: str) -> tuple[int, int]:
    """How many experts a layer has, and how many a token goes to."""
    count = figures.count(count_key, "num_experts", "num_local_experts", most=100_000)
    active = figures.count("num_experts_per_tok", "num_experts_per_token")
    if active > count:
        allowed = f"at most {count_key} ({count})"
        raise figures.wrong("num_experts_per_tok", active, "a token cannot go to more experts than there are", allowed)
    return count, active


def all_sparse(
    figures: Figures,
    count_key: str,
    *,
    router: str,
    qkv_bias: bool = False,
    out_bias: bool = False,
    qk_norm: QkNorm = "none",
    window: int | None = None,
) -> ModelFacts:
    """Every block: attention, a router, experts of `intermediate_size`."""
    dims = usual_dims(figures)
    count, active = routing(figures, count_key)
    linears = (
        *separate_attention(dims, bias=qkv_bias, out_bias=out_bias),
        Linear(router, dims.hidden, count),
        *experts(dims, dims.intermediate, count, active),
    )
    block = Layer(linears, 2 * dims.hidden + qk_norm_parameters(dims, qk_norm), 2, window)
    return assemble(
        figures,
        dims,
        [block] * dims.layers,
        activation=figures.text("hidden_act"),
        qk_norm=qk_norm,
        experts=count,
        experts_per_token=active,
    )


def mixtral(figures: Figures) -> ModelFacts:
    return all_sparse(figures, "num_local_experts", router="gate", window=figures.maybe("sliding_window"))


def olmoe(figures: Figures) -> ModelFacts:
    bias = figures.flag("attention_bias")
    return all_sparse(figures, "num_experts", router="gate", qkv_bias=bias, out_bias=bias, qk_norm="full")


def granitemoe(figures: Figures) -> ModelFacts:
    bias = figures.flag("attention_bias")
    return all_sparse(figures, "num_local_experts", router="router", qkv_bias=bias, out_bias=bias)


def gpt_oss(figures: Figures) -> ModelFacts:
    """Biases everywhere, a learned attention sink per head, every second layer slides."""
    dims = usual_dims(figures)
    bias = figures.flag("attention_bias")
    count, active = routing(figures, "num_local_experts")
    linears = (
        *separate_attention(dims, bias=bias, out_bias=bias),
        Linear("router", dims.hidden, count, True),
        *experts(dims, dims.intermediate, count, active, bias=True),
    )
    look_back = windows(figures, dims.layers, (index % 2 == 0 for index in range(dims.layers)))
    blocks = (Layer(linears, 2 * dims.hidden, 2, window, other_parameters=dims.heads) for window in look_back)
    activation = figures.text("hidden_act")
    return assemble(figures, dims, blocks, activation=activation, experts=count, experts_per_token=active)


def sparse_layers(figures: Figures, layers: int) -> list[bool]:
    """Qwen's rule: every `decoder_sparse_step`-th layer has experts, but those in `mlp_only_layers`."""
    every = figures.count("decoder_sparse_step")
    dense = figures.raw("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise figures.wrong("mlp_only_layers", dense, "this is no list of layers", "a list of layer numbers")
    return [index not in dense and (index + 1) % every == 0 for index in range(layers)]


def _qwen_moe(
    figures: Figures,
    dims: Dims,
    attention: tuple[Linear, ...],
    look_back: list[int | None],
    qk_norm: QkNorm,
    shared: int,
) -> ModelFacts:
    """Dense and sparse blocks; `shared` is the width of Qwen 2's shared expert, 0 for none."""
    count, active = routing(figures, "num_experts")
    inner = figures.count("moe_intermediate_size")
    sparse = (Linear("gate", dims.hidden, count), *experts(dims, inner, count, active))
    if shared:
        sparse = (*sparse, *gated_mlp(dims.hidden, shared), Linear("shared_expert_gate", dims.hidden, 1))
    norms = 2 * dims.hidden + qk_norm_parameters(dims, qk_norm)
    mlps = [sparse if one else gated_mlp(dims.hidden, dims.intermediate) for one in sparse_layers(figures, dims.layers)]
    blocks = [Layer((*attention, *mlp), norms, 2, window) for mlp, window in zip(mlps, look_back, strict=True)]
    return assemble(
        figures,
        dims if any(mlp is not sparse for mlp in mlps) else replace(dims, intermediate=inner),
        blocks,
        activation=figures.text("hidden_act"),
        qk_norm=qk_norm,
        experts=count,
        experts_per_token=active,
    )


def qwen2_moe(figures: Figures) -> ModelFacts:
    dims = usual_dims(figures)
    attention = separate_attention(dims, bias=figures.flag("qkv_bias"), out_bias=False)
    slide, last = figures.flag("use_sliding_window"), figures.count("max_window_layers", least=0)
    look_back = windows(figures, dims.layers, (slide and i % 2 == 0 and i < last for i in range(dims.layers)))
    shared = figures.count("shared_expert_intermediate_size")
    return _qwen_moe(figures, dims, attention, look_back if slide else [None] * dims.layers, "none", shared)


def qwen3_moe(figures: Figures) -> ModelFacts:
    dims = usual_dims(figures)
    bias = figures.flag("attention_bias")
    window = figures.maybe("sliding_window") if figures.flag("use_sliding_window") else None
    attention = separate_attention(dims, bias=bias, out_bias=bias)
    return _qwen_moe(figures, dims, attention, [window] * dims.layers, "head", 0)


def latent_attention(figures: Figures, dims: Dims, value_dim: int) -> tuple[tuple[Linear, ...], int]:
    """DeepSeek's multi-head latent attention, and the elements of the norms inside it."""
    bias = figures.flag("attention_bias")
    query_rank, kv_rank = figures.maybe("q_lora_rank"), figures.count("kv_lora_rank")
    rotated, plain = figures.count("qk_rope_head_dim"), figures.count("qk_nope_head_dim")
    if query_rank is None:
        query: tuple[Linear, ...] = (Linear("q_proj", dims.hidden, dims.query),)
    else:
        query = (Linear("q_a_proj", dims.hidden, query_rank, bias), Linear("q_b_proj", query_rank, dims.query))
    linears = (
        *query,
        Linear("kv_a_proj_with_mqa", dims.hidden, kv_rank + rotated, bias),
        Linear("kv_b_proj", kv_rank, dims.heads * (plain + value_dim)),
        Linear("o_proj", dims.heads * value_dim, dims.hidden, bias),
    )
    return linears, kv_rank + (query_rank or 0)


def deepseek(figures: Figures) -> ModelFacts:
    """DeepSeek V2 and V3: latent attention, first some dense blocks, then routed and shared experts."""
    dims = usual_dims(figures)
    head_dim = figures.count("qk_nope_head_dim") + figures.count("qk_rope_head_dim")
    dims = replace(dims, head_dim=head_dim, kv_heads=dims.heads)
    attention, inner_norms = latent_attention(figures, dims, figures.count("v_head_dim"))
    count, active = routing(figures, "n_routed_experts")
    inner, shared = figures.count("moe_intermediate_size"), figures.count("n_shared_experts")
    sparse = (
        Linear("gate", dims.hidden, count),
        *experts(dims, inner, count, active),
        *gated_mlp(dims.hidden, shared * inner),
    )
    first = figures.count("first_k_dense_replace", least=0)
    norms = 2 * dims.hidden + inner_norms
    dense = Layer((*attention, *gated_mlp(dims.hidden, dims.intermediate)), norms, 2)
    blocks = [dense if index < first else Layer((*attention, *sparse), norms, 2) for index in range(dims.layers)]
    return assemble(
        figures,
        dims if first else replace(dims, intermediate=inner),
        blocks,
        activation=figures.text("hidden_act"),
        experts=count,
        experts_per_token=active,
    )
