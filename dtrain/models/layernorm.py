"""Families with LayerNorm: GPT-2 and its heirs, Pythia, OPT, BLOOM, MPT, Falcon, Phi, StableLM, StarCoder 2, OLMo …"""

from __future__ import annotations

from dataclasses import replace

from dtrain.models.blocks import (
    Dims,
    assemble,
    fused_attention,
    gated_mlp,
    plain_mlp,
    qk_norm_parameters,
    separate_attention,
    usual_dims,
    whole_head,
)
from dtrain.models.facts import Layer, ModelFacts
from dtrain.models.figures import MOST_LAYERS, Figures

WEIGHT_AND_BIAS = 2
"""Elements of a LayerNorm per channel."""


def own_dims(figures: Figures, *, hidden: str, layers: str, heads: str, inner: str, positions: str) -> Dims:
    """Under the family's own key names; full-width attention, an MLP of four times the hidden size unless said."""
    width = figures.stated(hidden, "hidden_size", "n_embed")
    count = figures.count(heads, "num_attention_heads")
    return Dims(
        hidden=width,
        layers=figures.stated(layers, "num_hidden_layers", most=MOST_LAYERS),
        heads=count,
        kv_heads=count,
        head_dim=whole_head(figures, width, count, hidden),
        intermediate=figures.count(inner, otherwise=4 * width) if inner else 4 * width,
        vocab=figures.count("vocab_size"),
        positions=figures.maybe(positions) if positions else None,
        tied=figures.flag("tie_word_embeddings"),
    )


def gpt2(figures: Figures) -> ModelFacts:
    dims = own_dims(
        figures, hidden="n_embd", layers="n_layer", heads="n_head", inner="n_inner", positions="n_positions"
    )
    linears = (
        *fused_attention(dims, "c_attn", "c_proj", bias=True, out_bias=True),
        *plain_mlp(dims.hidden, dims.intermediate, "c_fc", "c_proj", bias=True),
    )
    block = Layer(linears, 2 * WEIGHT_AND_BIAS * dims.hidden, 2)
    return assemble(
        figures,
        dims,
        [block] * dims.layers,
        norm="layer",
        gated=False,
        activation=figures.text("activation_function"),
        learned_positions=figures.count("n_positions", "max_position_embeddings") * dims.hidden,
    )


def gptj(figures: Figures) -> ModelFacts:
    """Attention without biases, MLP and head with; both read one norm."""
    dims = own_dims(
        figures, hidden="n_embd", layers="n_layer", heads="n_head", inner="n_inner", positions="n_positions"
    )
    linears = (
        *separate_attention(dims, bias=False, out_bias=False, out="out_proj"),
        *plain_mlp(dims.hidden, dims.intermediate, "fc_in", "fc_out", bias=True),
    )
    block = Layer(linears, WEIGHT_AND_BIAS * dims.hidden, 1)
    activation = figures.text("activation_function")
    return assemble(
        figures,
        dims,
        [block] * dims.layers,
        norm="layer",
        gated=False,
        activation=activation,
        parallel_residual=True,
        head_bias=True,
    )


def gpt_neox(figures: Figures) -> ModelFacts:
    """Pythia and GPT-NeoX."""
    dims = usual_dims(figures)
    bias = figures.flag("attention_bias")
    linears = (
        *fused_attention(dims, "query_key_value", "dense", bias=bias, out_bias=bias),
        *plain_mlp(dims.hidden, dims.intermediate, "dense_h_to_4h", "dense_4h_to_h", bias=True),
    )
    block = Layer(linears, 2 * WEIGHT_AND_BIAS * dims.hidden, 2)
    return assemble(
        figures,
        dims,
        [block] * dims.layers,
        norm="layer",
        gated=False,
        activation=figures.text("hidden_act"),
        parallel_residual=figures.flag("use_parallel_residual"),
    )


OPT_POSITION_OFFSET = 2
"""OPT's position table starts with two rows that no token uses (transformers modeling_opt.py)."""


def opt(figures: Figures) -> ModelFacts:
    """The 350M model embeds into fewer channels, projects in and out, and has no last norm."""
    positions = "max_position_embeddings"
    dims = own_dims(
        figures,
        hidden="hidden_size",
        layers="num_hidden_layers",
        heads="num_attention_heads",
        inner="ffn_dim",
        positions=positions,
    )
    bias = figures.flag("enable_bias")
    norm_width = WEIGHT_AND_BIAS * dims.hidden if figures.flag("layer_norm_elementwise_affine") else 0
    linears = (
        *separate_attention(dims, bias=bias, out_bias=bias, out="out_proj"),
        *plain_mlp(dims.hidden, dims.intermediate, "fc1", "fc2", bias=bias),
    )
    width = figures.count("word_embed_proj_dim", otherwise=dims.hidden)
    last_norm = figures.flag("do_layer_norm_before") and not figures.flag("_remove_final_layer_norm")
    return assemble(
        figures,
        dims,
        [Layer(linears, 2 * norm_width, 2)] * dims.layers,
        norm="layer",
        norm_width=norm_width if last_norm else 0,
        embedding_width=width,
        gated=False,
        activation=figures.text("activation_function"),
        learned_positions=(figures.count(positions) + OPT_POSITION_OFFSET) * dims.hidden,
        extra_embedding=width * dims.hidden if width != dims.hidden else 0,
        extra_final=width * dims.hidden if width != dims.hidden else 0,
    )


def bloom(figures: Figures) -> ModelFacts:
    """ALiBi, and a norm right after the embedding; its tanh GELU is one function of its own."""
    dims = own_dims(figures, hidden="hidden_size", layers="n_layer", heads="n_head", inner="", positions="seq_length")
    linears = (
        *fused_attention(dims, "query_key_value", "dense", bias=True, out_bias=True),
        *plain_mlp(dims.hidden, dims.intermediate, "dense_h_to_4h", "dense_4h_to_h", bias=True),
    )
    norm_width = WEIGHT_AND_BIAS * dims.hidden
    block = Layer(linears, 2 * norm_width, 2)
    return assemble(
        figures,
        dims,
        [block] * dims.layers,
        norm="layer",
        gated=False,
        activation="gelu",
        extra_embedding=norm_width,
    )


def mpt(figures: Figures) -> ModelFacts:
    """No biases anywhere, norms included, whatever `no_bias` says (transformers modeling_mpt.py); MLP of 4 × hidden."""
    dims = own_dims(figures, hidden="d_model", layers="n_layers", heads="n_heads", inner="", positions="max_seq_len")
    linears = (
        *fused_attention(dims, "Wqkv", "out_proj", bias=False, out_bias=False),
        *plain_mlp(dims.hidden, dims.intermediate, "up_proj", "down_proj", bias=False),
    )
    block = Layer(linears, 2 * dims.hidden, 2)
    return assemble(
        figures, dims, [block] * dims.layers, norm="layer", norm_width=dims.hidden, gated=False, activation="gelu"
    )


def falcon(figures: Figures) -> ModelFacts:
    """7B: one KV head, one norm. 40B and later: groups of KV heads, two norms. rw: full attention, in sequence."""
    dims = own_dims(
        figures,
        hidden="hidden_size",
        layers="num_hidden_layers",
        heads="num_attention_heads",
        inner="ffn_hidden_size",
        positions="max_position_embeddings",
    )
    grouped, parallel = figures.flag("new_decoder_architecture"), figures.flag("parallel_attn")
    if grouped:
        dims = replace(dims, kv_heads=figures.count("num_kv_heads", "n_head_kv", otherwise=dims.heads))
    elif figures.flag("multi_query"):
        dims = replace(dims, kv_heads=1)
    bias = figures.flag("bias")
    linears = (
        *fused_attention(dims, "query_key_value", "dense", bias=bias, out_bias=bias),
        *plain_mlp(dims.hidden, dims.intermediate, "dense_h_to_4h", "dense_4h_to_h", bias=bias),
    )
    norms = figures.count("num_ln_in_parallel_attn", otherwise=2 if grouped else 1) if parallel else 2
    block = Layer(linears, min(norms, 2) * WEIGHT_AND_BIAS * dims.hidden, min(norms, 2))
    return assemble(
        figures,
        dims,
        [block] * dims.layers,
        norm="layer",
        gated=False,
        activation=figures.text("activation"),
        parallel_residual=parallel,
    )


def phi(figures: Figures) -> ModelFacts:
    """Phi-1, 1.5 and 2: biases everywhere, attention and MLP read one norm."""
    dims = usual_dims(figures)
    linears = (
        *separate_attention(dims, bias=True, out_bias=True, out="dense"),
        *plain_mlp(dims.hidden, dims.intermediate, "fc1", "fc2", bias=True),
    )
    normed = figures.flag("qk_layernorm")
    qk_norm = WEIGHT_AND_BIAS * qk_norm_parameters(dims, "head") if normed else 0
    block = Layer(linears, WEIGHT_AND_BIAS * dims.hidden + qk_norm, 1)
    return assemble(
        figures,
        dims,
        [block] * dims.layers,
        norm="layer",
        gated=False,
        activation=figures.text("hidden_act"),
        qk_norm="head" if normed else "none",
        parallel_residual=True,
        head_bias=True,
    )


def stablelm(figures: Figures) -> ModelFacts:
    dims = usual_dims(figures)
    parallel, normed = figures.flag("use_parallel_residual"), figures.flag("qk_layernorm")
    norms = 1 if parallel else 2
    linears = (
        *separate_attention(dims, bias=figures.flag("use_qkv_bias"), out_bias=False),
        *gated_mlp(dims.hidden, dims.intermediate),
    )
    qk_norm = qk_norm_parameters(dims, "full") if normed else 0
    block = Layer(linears, norms * WEIGHT_AND_BIAS * dims.hidden + qk_norm, norms)
    return assemble(
        figures,
        dims,
        [block] * dims.layers,
        norm="layer",
        activation=figures.text("hidden_act"),
        qk_norm="full" if normed else "none",
        parallel_residual=parallel,
    )


def starcoder2(figures: Figures) -> ModelFacts:
    dims = usual_dims(figures)
    bias = figures.flag("use_bias")
    linears = (
        *separate_attention(dims, bias=bias, out_bias=bias),
        *plain_mlp(dims.hidden, dims.intermediate, "c_fc", "c_proj", bias=bias),
    )
    block = Layer(linears, 2 * WEIGHT_AND_BIAS * dims.hidden, 2, figures.maybe("sliding_window"))
    activation = figures.text("hidden_act")
    return assemble(figures, dims, [block] * dims.layers, norm="layer", gated=False, activation=activation)


def olmo(figures: Figures) -> ModelFacts:
    """Norms without parameters."""
    dims = usual_dims(figures)
    bias = figures.flag("attention_bias")
    linears = (*separate_attention(dims, bias=bias, out_bias=bias), *gated_mlp(dims.hidden, dims.intermediate))
    block = Layer(linears, 0, 2)
    return assemble(
        figures, dims, [block] * dims.layers, norm="layer", norm_width=0, activation=figures.text("hidden_act")
    )


def cohere(figures: Figures) -> ModelFacts:
    """Command R: norms with a weight and no bias, attention and MLP read one norm."""
    dims = usual_dims(figures)
    bias, normed = figures.flag("attention_bias"), figures.flag("use_qk_norm")
    linears = (*separate_attention(dims, bias=bias, out_bias=bias), *gated_mlp(dims.hidden, dims.intermediate))
    block = Layer(linears, dims.hidden + (qk_norm_parameters(dims, "full") if normed else 0), 1)
    return assemble(
        figures,
        dims,
        [block] * dims.layers,
        norm="layer",
        norm_width=dims.hidden,
        activation=figures.text("hidden_act"),
        qk_norm="full" if normed else "none",
        parallel_residual=True,
    )
