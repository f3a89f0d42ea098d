"""What autograd keeps for backward, per token: counted tensor by tensor from the code that runs.

The unit is bytes per token of a rank's micro-batch. The counts follow transformers' modules as they are written
(norms that compute in fp32, gated MLPs of separate kernels), fused kernels where a setup has them, and autograd's
rule that a matmul keeps its input only if its weight, or an adapter on it, is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from dtrain.models.facts import Layer, Linear
from dtrain.planner.activation_key import ActivationKey, parts_of
from dtrain.planner.attention_bytes import attention_core, attention_saved, attention_working, scores_working
from dtrain.planner.norm_bytes import keeps_norm_input, norm_working, norms_saved

HIDDEN_DROPOUT = ("resid_pdrop", "residual_dropout", "hidden_dropout")
"""Names under which families' configs keep the dropout of what attention and MLP add to the residual stream."""


@dataclass(frozen=True)
class LayerBytes:
    """One block, bytes per token."""

    input: float
    """The residual stream that enters it: what full checkpointing keeps."""
    saved: float
    """Kept from forward to backward without checkpointing, its input counted once."""
    selective: float
    """Kept under the selective policy: attention outputs and every second matmul's output."""
    reused: float
    """Of `selective`, what takes the place of its like in `saved` while the block is recomputed."""
    working: float
    """Alive beside `saved` while its backward runs: gradients of intermediates."""
    shared: float
    """Of `saved`, what is the block's input itself (norms that keep their input make no copy)."""
    forward: float
    """Alive beside its input while its forward runs without keeping anything."""


NO_LAYER = LayerBytes(0, 0, 0, 0, 0, 0, 0)


@lru_cache(maxsize=65536)
def layer_bytes(key: ActivationKey, layer: Layer) -> LayerBytes:
    """The tensors of one block; see the module's docstring."""
    stream = key.width * key.facts.hidden_size / key.stream_ways
    saved = attention_saved(key, layer) + _mlp_saved(key, layer) + norms_saved(key, layer)
    saved += _magnitudes_saved(key, layer) + _dropout_masks(key)
    selective, reused = _selective_saved(key, layer)
    return LayerBytes(
        input=stream,
        saved=saved,
        selective=stream + selective,
        reused=reused,
        working=_working(key, layer),
        shared=stream if keeps_norm_input(key) else 0.0,
        forward=forward_working(key, layer),
    )


def _dropout_masks(key: ActivationKey) -> float:
    """One byte an element after attention and after the MLP, where another framework trains with dropout."""
    given = any(key.facts.config.get(name) for name in HIDDEN_DROPOUT)
    return 2.0 * key.facts.hidden_size / key.stream_ways if given and not key.transformers_code else 0.0


def _magnitudes_saved(key: ActivationKey, layer: Layer) -> float:
    """DoRA scales the sum of both products: its magnitude's gradient needs the adapter's product and the frozen one."""
    if not key.dora:
        return 0.0
    adapted = sum(one.outputs * one.active for one in layer.linears if one.name in key.targets)
    return adapted * (key.adapter_width + key.width) / key.tensor_parallel


def _mlp_saved(key: ActivationKey, layer: Layer) -> float:
    facts = key.facts
    parts = parts_of(facts, layer)
    shares_input = facts.parallel_residual and layer.norms == 1  # one norm feeds both halves: its output is kept once
    if key.tile_share is not None:  # one tile after another, recomputed in backward: only the input is kept
        return 0.0 if shares_input else key.width * facts.hidden_size / key.gathered_ways
    kept = 0.0
    if not shares_input:
        kept = facts.hidden_size * key.keeps_input(*parts.ups, *parts.routers) / key.gathered_ways
    kept += inner_width(key, layer) * (_activation_kept(key) + key.keeps_input(*parts.downs))
    return kept + _routing_saved(key, layer)


def _routing_saved(key: ActivationKey, layer: Layer) -> float:
    """Tokens are copied once per expert they go to, and each result is scaled by its routing weight."""
    routed = sum(one.active for one in parts_of(key.facts, layer).downs if one.count > 1)
    if not routed:
        return 0.0
    scaled = 4 if key.fp32_routing else key.width
    return routed * (key.width + scaled) * key.facts.hidden_size + 3 * 4 * key.facts.experts


def _padded_rows(key: ActivationKey, layer: Layer) -> float:
    """torchtitan fills each expert's rows up to whole tiles: one more copy of them before the experts' product and one
    after it (models/moe, indices_padding_wrapper)."""
    if not key.fp32_routing:
        return 0.0
    routed = sum(one.active for one in parts_of(key.facts, layer).downs if one.count > 1)
    return 2 * key.width * routed * key.facts.hidden_size


def _activation_kept(key: ActivationKey) -> float:
    """Bytes per inner element that the MLP's activation keeps, the down projection's input aside."""
    lean = key.fused or key.compiled
    if key.facts.family == "gpt_oss" and not lean:
        return key.width * 6  # both halves before and after their clamps, the sigmoid, and its product
    if key.facts.gated_mlp:
        return key.width * (2 if lean else 3)
    if key.facts.activation == "relu":
        return 0.0  # it keeps its output, which the down projection keeps as well
    if key.facts.activation == "gelu_new" and key.transformers_code and not key.compiled:
        return key.width * 4  # x, 0.5x, tanh and 1 + tanh: it is written out in Python (transformers/activations.py)
    return key.width


def _selective_saved(key: ActivationKey, layer: Layer) -> tuple[float, float]:
    """torchtitan's per-op policy: outputs of attention and of every second matmul, in the order they run; and what
    recomputation takes of it (it ends before a block's last matmul)."""
    tp = key.tensor_parallel
    matmuls = _matmul_outputs(layer, parts_of(key.facts, layer).downs)
    attention = attention_core(key) / tp
    reused = key.width * sum(matmuls[:-1:2]) / tp + attention
    if key.compiled:  # backward needs no output of the last matmul, and a compiled graph keeps nothing without a use
        return reused, reused
    return key.width * sum(matmuls[::2]) / tp + attention, reused


def _matmul_outputs(layer: Layer, downs: tuple[Linear, ...]) -> list[float]:
    """Elements per token of each matmul's output, in order. Experts are one product up, gate included, and one down."""
    single = [one.outputs for one in layer.linears if one.count == 1]
    experts = [one for one in layer.linears if one.count > 1]
    up = sum(one.active * one.outputs for one in experts if one not in downs)
    down = sum(one.active * one.outputs for one in experts if one in downs)
    return [*single, up, down] if experts else list(single)


def _working(key: ActivationKey, layer: Layer) -> float:
    """Beside what is saved, at the fullest moment of a block's backward. Backward meets the MLP first."""
    mlp = _mlp_working(key, layer)
    attention = attention_working(key) - _mlp_saved(key, layer)
    norm = norm_working(key) * key.facts.hidden_size / key.stream_ways - _mlp_saved(key, layer)
    return max(mlp, attention, norm, 0.0)


def _mlp_working(key: ActivationKey, layer: Layer) -> float:
    """The product of the gated activation: three gradients of the inner width (two without a gate) and the stream's.

    The down projection's input is already freed.
    """
    facts, inner = key.facts, inner_width(key, layer)
    gradients = 3 if facts.gated_mlp else 2
    if key.tile_share is not None:
        inside = _activation_kept(key) + key.width * (1 + gradients)
        return key.width * 2 * facts.hidden_size + inside * inner * key.tile_share
    routed = _routing_saved(key, layer) * (1 if key.fp32_routing else 0.5)  # gradients of scattered and scaled rows
    routed += _padded_rows(key, layer)
    working = key.width * (facts.hidden_size + gradients * inner) + routed
    freed = facts.activation != "relu"  # whose output is what the down projection keeps, and its own backward needs it
    return working - (inner * key.keeps_input(*parts_of(facts, layer).downs) if freed else 0.0)


def tile_sums(key: ActivationKey, layer: Layer) -> float:
    """Bytes, not per token: the gradients of a tiled MLP's weights, of all tiles in fp32 and of one as computed."""
    if key.tile_share is None or not key.trained:
        return 0.0
    parts = parts_of(key.facts, layer)
    return (4 + key.width) * sum(one.parameters for one in (*parts.ups, *parts.downs)) / key.tensor_parallel


def inner_width(key: ActivationKey, layer: Layer) -> float:
    """Elements of the MLP's inner layer that one token passes, all its experts together."""
    parts = parts_of(key.facts, layer)
    return sum(one.inputs * one.active for one in parts.downs) / key.tensor_parallel


def forward_working(key: ActivationKey, layer: Layer) -> float:
    """Beside its input, at the fullest moment of a block's forward without gradients: MLP, norm or attention."""
    facts = key.facts
    inner = inner_width(key, layer) * (3 if facts.gated_mlp else 2)
    mlp = key.width * (2 * facts.hidden_size + inner * (key.tile_share or 1.0)) + _routing_saved(key, layer)
    norm = norm_working(key) * facts.hidden_size / key.stream_ways
    query, key_value = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    attention = key.width * (facts.hidden_size + (3 * query + 3 * key_value) / key.tensor_parallel)
    return max(mlp, norm, attention + scores_working(key))
