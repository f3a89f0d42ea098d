"""The parts decoder blocks are made of, and how parts become ModelFacts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dtrain.models.facts import Layer, Linear, ModelFacts
from dtrain.models.figures import MOST_LAYERS, Figures

QkNorm = Literal["none", "head", "full"]
"""Norm on queries and keys: none, one weight vector shared by all heads, or one over all heads together."""


@dataclass(frozen=True)
class Dims:
    """The figures every family has, whatever it calls them."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    positions: int | None
    tied: bool

    @property
    def query(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        return self.kv_heads * self.head_dim


def usual_dims(figures: Figures) -> Dims:
    """Under the names that Llama set. An absent `head_dim` is hidden / heads; absent KV heads are as many as heads."""
    hidden, heads = figures.stated("hidden_size"), figures.count("num_attention_heads")
    kv_heads = figures.count("num_key_value_heads", otherwise=heads)
    head_dim = figures.maybe("head_dim") or whole_head(figures, hidden, heads, "hidden_size")
    if heads % kv_heads:
        allowed = f"a divisor of num_attention_heads ({heads})"
        raise figures.wrong("num_key_value_heads", kv_heads, "query heads cannot share these", allowed)
    return Dims(
        hidden=hidden,
        layers=figures.stated("num_hidden_layers", most=MOST_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=figures.count("intermediate_size"),
        vocab=figures.count("vocab_size"),
        positions=figures.maybe("max_position_embeddings"),
        tied=figures.flag("tie_word_embeddings"),
    )


def whole_head(figures: Figures, hidden: int, heads: int, key: str) -> int:
    """hidden / heads, which must come out even."""
    if hidden % heads:
        raise figures.wrong(key, hidden, f"{hidden} does not divide into {heads} heads", f"a multiple of {heads}")
    return hidden // heads


def separate_attention(dims: Dims, *, bias: bool, out_bias: bool, out: str = "o_proj") -> tuple[Linear, ...]:
    """`q_proj k_proj v_proj` and the output projection."""
    return (
        Linear("q_proj", dims.hidden, dims.query, bias),
        Linear("k_proj", dims.hidden, dims.key_value, bias),
        Linear("v_proj", dims.hidden, dims.key_value, bias),
        Linear(out, dims.query, dims.hidden, out_bias),
    )


def fused_attention(dims: Dims, qkv: str, out: str, *, bias: bool, out_bias: bool) -> tuple[Linear, ...]:
    """One matrix for queries, keys and values."""
    return (
        Linear(qkv, dims.hidden, dims.query + 2 * dims.key_value, bias),
        Linear(out, dims.query, dims.hidden, out_bias),
    )


def gated_mlp(hidden: int, inner: int, *, bias: bool = False) -> tuple[Linear, ...]:
    return (
        Linear("gate_proj", hidden, inner, bias),
        Linear("up_proj", hidden, inner, bias),
        Linear("down_proj", inner, hidden, bias),
    )


def plain_mlp(hidden: int, inner: int, up: str, down: str, *, bias: bool) -> tuple[Linear, ...]:
    return Linear(up, hidden, inner, bias), Linear(down, inner, hidden, bias)


def qk_norm_parameters(dims: Dims, kind: QkNorm) -> int:
    return {"none": 0, "head": 2 * dims.head_dim, "full": dims.query + dims.key_value}[kind]


def kinds(layers: Iterable[Layer]) -> tuple[tuple[Layer, int], ...]:
    """Equal blocks counted, in order of first appearance."""
    return tuple(Counter(layers).items())


def windows(figures: Figures, layers: int, sliding: Iterable[bool]) -> list[int | None]:
    """Per layer the window, or None for all tokens. `layer_types` decides where the config has it, else `sliding`."""
    words = figures.words("layer_types", layers)
    slides = [word == "sliding_attention" for word in words] if words else list(sliding)
    window = figures.maybe("sliding_window") if any(slides) else None
    return [window if slide else None for slide in slides]


def assemble(
    figures: Figures,
    dims: Dims,
    layers: Iterable[Layer],
    *,
    norm: Literal["rms", "layer"] = "rms",
    norm_width: int | None = None,
    embedding_width: int | None = None,
    gated: bool = True,
    activation: str,
    qk_norm: QkNorm = "none",
    parallel_residual: bool = False,
    experts: int = 0,
    experts_per_token: int = 0,
    learned_positions: int = 0,
    extra_embedding: int = 0,
    extra_final: int = 0,
    head_bias: bool = False,
) -> ModelFacts:
    """Embedding, blocks, last norm and head. `norm_width` is the elements of an unusual last norm;
    `embedding_width` the channels of embedding and head, where they are not the hidden size.
    """
    width = dims.hidden if embedding_width is None else embedding_width
    final = dims.hidden * (1 if norm == "rms" else 2) if norm_width is None else norm_width
    head = 0 if dims.tied else dims.vocab * width
    return ModelFacts(
        name=figures.name,
        family=figures.family,
        hidden_size=dims.hidden,
        heads=dims.heads,
        kv_heads=dims.kv_heads,
        head_dim=dims.head_dim,
        intermediate_size=dims.intermediate,
        vocab_size=dims.vocab,
        max_positions=dims.positions,
        layers=kinds(layers),
        tied_embeddings=dims.tied,
        gated_mlp=gated,
        norm=norm,
        experts=experts,
        experts_per_token=experts_per_token,
        learned_position_parameters=learned_positions,
        embedding_parameters=dims.vocab * width + learned_positions + extra_embedding,
        head_parameters=head + (dims.vocab if head_bias else 0),
        final_parameters=final + extra_final,
        source=figures.source,
        activation=activation,
        qk_norm=qk_norm,
        parallel_residual=parallel_residual,
        config=figures.config,
    )
