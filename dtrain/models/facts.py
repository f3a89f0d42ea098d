"""A decoder-only language model as numbers: enough to count parameters, FLOPs and bytes exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal


@dataclass(frozen=True)
class Linear:
    """One weight matrix of a block. `count` matrices a layer holds (experts), of which a token uses `active`."""

    name: str
    """The module's own name (`q_proj`, `gate_proj`, `c_attn`), what `lora_target_modules` says."""
    inputs: int
    outputs: int
    bias: bool = False
    count: int = 1
    active: float = 1.0

    @property
    def parameters(self) -> int:
        return self.count * (self.inputs * self.outputs + (self.outputs if self.bias else 0))


@dataclass(frozen=True)
class Layer:
    """One kind of transformer block. A model is a list of (Layer, how many)."""

    linears: tuple[Linear, ...]
    """Every matmul weight of the block: attention projections, MLP, router, experts, shared expert."""
    norm_parameters: int
    """Elements of norm weights and biases in the block, q/k norms included."""
    norms: int
    """How many norms over the hidden size a token passes (their saved inputs count as activations)."""
    attention_window: int | None = None
    """Tokens a token may look back at; None is all of them."""
    other_parameters: int = 0
    """Elements that are no matmul and no norm (sinks, biases of experts, …)."""

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """A search looks blocks up a hundred thousand times."""
        return hash((self.linears, self.norm_parameters, self.norms, self.attention_window, self.other_parameters))

    @property
    def parameters(self) -> int:
        return sum(linear.parameters for linear in self.linears) + self.norm_parameters + self.other_parameters


@dataclass(frozen=True)
class ModelFacts:
    name: str
    """What the config called it."""
    family: str
    """transformers' `model_type`: llama, qwen3_moe, …"""
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    """Of the dense MLP; of one expert where all layers are MoE."""
    vocab_size: int
    max_positions: int | None
    layers: tuple[tuple[Layer, int], ...]
    """Kinds of blocks and how many of each, in order of first appearance."""
    tied_embeddings: bool
    gated_mlp: bool
    norm: Literal["rms", "layer"]
    experts: int = 0
    experts_per_token: int = 0
    learned_position_parameters: int = 0
    embedding_parameters: int = 0
    """Token embedding (and learned positions and anything else before the first block)."""
    head_parameters: int = 0
    """The output matrix and its bias; 0 when tied."""
    final_parameters: int = 0
    """The last norm and projections outside the blocks."""
    activation: str = "silu"
    """Of the MLP, as the config spells it (`silu`, `gelu_new`, `gelu_pytorch_tanh`, `relu` …)."""
    qk_norm: Literal["none", "head", "full"] = "none"
    """Norm on queries and keys: none, one weight vector for all heads, or one over all heads together."""
    parallel_residual: bool = False
    """Attention and MLP read the same residual (GPT-NeoX, GPT-J, Falcon, Phi) instead of one after the other."""
    source: str = ""
    """Where the figures come from: a folder, the catalogue, the hub and its revision."""
    config: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The config.json itself, for what the planner does not model."""

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.name, self.family, self.hidden_size, self.vocab_size, self.layers, self.tied_embeddings))

    @cached_property
    def layer_count(self) -> int:
        return sum(count for _, count in self.layers)

    @cached_property
    def parameters(self) -> int:
        blocks = sum(layer.parameters * count for layer, count in self.layers)
        return blocks + self.embedding_parameters + self.head_parameters + self.final_parameters

    @cached_property
    def active_parameters(self) -> int:
        """Parameters a token touches: all of them but the experts it is not routed to."""
        idle = sum(
            count * round(sum((1 - linear.active / linear.count) * linear.parameters for linear in layer.linears))
            for layer, count in self.layers
        )
        return self.parameters - idle
