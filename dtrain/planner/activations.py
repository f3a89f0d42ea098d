"""What autograd keeps for backward, per token: counted tensor by tensor from the code that runs.

The unit is bytes per token of a rank's micro-batch. The counts follow transformers' modules as they are written
(norms that compute in fp32, gated MLPs of separate kernels), fused kernels where a setup has them, and autograd's
rule that a matmul keeps its input only if its weight, or an adapter on it, is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from dtrain.models.facts import Layer, Linear, ModelFacts
from dtrain.planner.setup import DTYPE_BYTES, Setup

FLASH_LIKE = ("flash_attention_2", "flash_attention_3", "varlen", "sdpa", "flex")
"""Back ends whose memory is linear in the window; they keep q, k, v, the output and a log-sum-exp per head."""


@dataclass(frozen=True)
class Parts:
    """A block's matrices by role. `inner` widths count what one token passes (active experts only)."""

    attention: tuple[Linear, ...]
    out: Linear | None
    ups: tuple[Linear, ...]
    downs: tuple[Linear, ...]
    routers: tuple[Linear, ...]


@lru_cache(maxsize=4096)
def parts_of(facts: ModelFacts, layer: Layer) -> Parts:
    """Attention comes first: q, k and v until their widths are complete, the output projection next, the MLP after."""
    wanted = facts.head_dim * (facts.heads + 2 * facts.kv_heads)
    seen, split = 0, 0
    while split < len(layer.linears) and seen < wanted:
        seen += layer.linears[split].outputs
        split += 1
    out = layer.linears[split] if split < len(layer.linears) else None
    rest = layer.linears[split + 1 :]
    routers = tuple(one for one in rest if one.count == 1 and one.outputs in (1, facts.experts) and facts.experts)
    mlp = [one for one in rest if one not in routers]
    downs = tuple(one for one in mlp if one.outputs == facts.hidden_size and one.inputs != facts.hidden_size) or tuple(
        mlp[-1:]
    )
    return Parts(layer.linears[:split], out, tuple(one for one in mlp if one not in downs), downs, routers)


@dataclass(frozen=True)
class LayerBytes:
    """One block, bytes per token."""

    input: float
    """The residual stream that enters it: what full checkpointing keeps."""
    saved: float
    """Kept from forward to backward without checkpointing, its input counted once."""
    selective: float
    """Kept under the selective policy: attention outputs and every second matmul's output."""
    working: float
    """Alive beside `saved` while its backward runs: gradients of intermediates."""
    shared: float
    """Of `saved`, what is the block's input itself (norms that keep their input make no copy)."""
    forward: float
    """Alive beside its input while its forward runs without keeping anything."""


NO_LAYER = LayerBytes(0, 0, 0, 0, 0, 0)


@lru_cache(maxsize=65536)
def layer_bytes(key: ActivationKey, layer: Layer) -> LayerBytes:
    """The tensors of one block; see the module's docstring."""
    stream = key.width * key.facts.hidden_size
    saved = _attention_saved(key, layer) + _mlp_saved(key, layer) + _norms_saved(key, layer)
    return LayerBytes(
        input=stream,
        saved=saved,
        selective=stream + _selective_saved(key, layer),
        working=_working(key, layer),
        shared=stream if keeps_norm_input(key) else 0.0,
        forward=forward_working(key, layer),
    )


@dataclass(frozen=True)
class ActivationKey:
    """The few properties of a Setup on which a block's bytes depend, so that a search counts each block once."""

    facts: ModelFacts
    width: float
    """Bytes of a compute element."""
    norm_width: float
    fused: bool
    compiled: bool
    attention: str
    window: int
    """Tokens of the whole sequence, for attention that is quadratic."""
    tensor_parallel: int
    trained: bool
    targets: frozenset[str]
    adapter_width: float
    dropout: bool
    packed: bool
    tiled_mlp: bool
    ulysses: bool
    frozen_keeps: bool
    quantised: bool
    fp32_routing: bool

    @classmethod
    def of(cls, setup: Setup) -> ActivationKey:
        adapter = setup.adapter
        return cls(
            facts=setup.facts,
            width=DTYPE_BYTES[setup.dtypes.compute],
            norm_width=DTYPE_BYTES[setup.dtypes.norm],
            fused=setup.fused_kernels,
            compiled=setup.compiled,
            attention=setup.attention,
            window=setup.sequence_len,
            tensor_parallel=setup.tensor_parallel_size,
            trained=adapter is None,
            targets=adapter.targets if adapter else frozenset(),
            adapter_width=DTYPE_BYTES[setup.dtypes.compute if setup.shards_weights else setup.dtypes.weights],
            dropout=bool(adapter and adapter.dropout),
            packed=setup.packed,
            tiled_mlp=setup.tiled_mlp,
            ulysses=setup.sequence_parallel_size > 1,
            frozen_keeps=setup.frozen_keeps_inputs,
            quantised=setup.dtypes.frozen in ("nf4", "int8"),
            fp32_routing=setup.fp32_routing,
        )

    def keeps_input(self, *linears: Linear) -> float:
        """Bytes per input element that matmuls on one shared input keep: the input, or an adapter's own copies."""
        if self.trained:
            return self.width
        frozen = self.frozen_kept
        adapted = sum(1 for one in linears if one.name in self.targets)
        if adapted and (self.dropout or self.adapter_width != self.width):
            # dropout and a cast make a copy for each adapter
            return frozen + adapted * (self.adapter_width + (1 if self.dropout else 0))
        return max(frozen, self.width) if adapted else frozen

    @property
    def frozen_kept(self) -> float:
        """Bytes per element that a frozen matmul keeps of its input: nothing, where autograd is as it should be."""
        if not self.frozen_keeps:
            return 0.0
        return self.width * (2 if self.quantised else 1)


def _norms_saved(key: ActivationKey, layer: Layer) -> float:
    return layer.norms * key.facts.hidden_size * norm_saved(key)


def keeps_norm_input(key: ActivationKey) -> bool:
    """Whether a norm keeps its input, instead of an fp32 copy of it."""
    return key.facts.norm == "layer" or key.fused or key.compiled or key.width >= key.norm_width


def norm_saved(key: ActivationKey) -> float:
    """Bytes a norm keeps per element, its output aside.

    transformers' RMSNorm computes on an fp32 copy (kept twice over as one tensor) and keeps the normalised 16-bit
    value when its weight is trained; torch's LayerNorm and fused kernels keep their input.
    """
    if key.facts.norm == "layer" or key.fused or key.compiled:
        return key.width
    if key.width >= key.norm_width:  # no copy to upcast: the input itself is kept
        return key.width + (key.width if key.trained else 0)
    return key.norm_width + (key.width if key.trained else 0)


def _attention_saved(key: ActivationKey, layer: Layer) -> float:
    facts, tp = key.facts, key.tensor_parallel
    query, key_value = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    parts = parts_of(facts, layer)
    kept = facts.hidden_size * key.keeps_input(*parts.attention)
    kept += key.width * (query + 2 * key_value) / tp
    kept += _attention_core(key, layer) / tp
    if facts.qk_norm != "none":
        kept += (query + key_value) / tp * norm_saved(key)
    if key.ulysses or (key.packed and key.attention == "sdpa"):
        kept += key.width * query / tp  # the output once more: back from the all-to-all, or documents concatenated
    if not key.trained and key.frozen_keeps and key.quantised:
        kept += key.width * query / tp
    return kept


def _attention_core(key: ActivationKey, layer: Layer) -> float:
    """The output and what is kept to differentiate the softmax: a log-sum-exp a head, or whole score matrices."""
    facts = key.facts
    output = key.width * facts.heads * facts.head_dim
    if not quadratic(key):
        return output + 4 * facts.heads
    scores = 4 + key.width + (2 * key.width if softcapped(facts) else 0)  # fp32 softmax and its 16-bit copy
    groups = facts.heads // max(1, facts.kv_heads)
    repeated = 2 * key.width * facts.kv_heads * facts.head_dim * (groups - 1)
    return output + repeated + scores * facts.heads * key.window


def softcapped(facts: ModelFacts) -> bool:
    return bool(facts.config.get("attn_logit_softcapping"))


def quadratic(key: ActivationKey) -> bool:
    """Whether score matrices exist: eager attention, and Gemma 2's cap where no kernel has it."""
    return key.attention == "eager" or (softcapped(key.facts) and key.attention in ("sdpa", "varlen"))


def _mlp_saved(key: ActivationKey, layer: Layer) -> float:
    facts = key.facts
    if key.tiled_mlp:  # one tile after another, recomputed in backward: only the input is kept (deepspeed TiledMLP)
        return key.width * facts.hidden_size
    parts = parts_of(facts, layer)
    kept = 0.0
    if not (facts.parallel_residual and layer.norms == 1):  # one norm feeds both halves: its output is kept once
        kept = facts.hidden_size * key.keeps_input(*parts.ups, *parts.routers)
    kept += inner_width(key, layer) * (_activation_kept(key) + key.keeps_input(*parts.downs))
    return kept + _routing_saved(key, layer)


def _routing_saved(key: ActivationKey, layer: Layer) -> float:
    """Tokens are copied once per expert they go to, and each result is scaled by its routing weight."""
    routed = sum(one.active for one in parts_of(key.facts, layer).downs if one.count > 1)
    if not routed:
        return 0.0
    scaled = 4 if key.fp32_routing else key.width
    return routed * (key.width + scaled) * key.facts.hidden_size + 3 * 4 * key.facts.experts


def _activation_kept(key: ActivationKey) -> float:
    """Bytes per inner element that the MLP's activation keeps, the down projection's input aside."""
    if key.facts.gated_mlp:
        return key.width * (2 if key.fused or key.compiled else 3)
    if key.facts.activation == "gelu_new" and not key.compiled:
        return key.width * 4  # x, 0.5x, tanh and 1 + tanh: it is written out in Python (transformers/activations.py)
    return key.width


def _selective_saved(key: ActivationKey, layer: Layer) -> float:
    """torchtitan's per-op policy: outputs of attention and of every second matmul, in the order they run."""
    tp = key.tensor_parallel
    matmuls = [one for one in layer.linears for _ in range(max(1, round(one.active)))]
    outputs = sum(one.outputs for index, one in enumerate(matmuls) if index % 2 == 0)
    return key.width * outputs / tp + _attention_core(key, layer) / tp


def _working(key: ActivationKey, layer: Layer) -> float:
    """Beside what is saved, at the fullest moment of a block's backward. Backward meets the MLP first."""
    mlp = _mlp_working(key, layer)
    attention = _attention_working(key) - _mlp_saved(key, layer)
    norm = norm_working(key) * key.facts.hidden_size - _mlp_saved(key, layer)
    return max(mlp, attention, norm, 0.0)


def _mlp_working(key: ActivationKey, layer: Layer) -> float:
    """The product of the gated activation: three gradients of the inner width (two without a gate) and the stream's.

    The down projection's input is already freed.
    """
    facts, inner = key.facts, inner_width(key, layer)
    if key.tiled_mlp:
        tile = min(1.0, facts.hidden_size / key.window)  # ALST takes about hidden_size tokens a tile
        return key.width * (2 * facts.hidden_size + 7 * inner * tile)
    gradients = 3 if facts.gated_mlp else 2
    routed = _routing_saved(key, layer) / 2  # gradients of the scattered and scaled rows
    working = key.width * (facts.hidden_size + gradients * inner) + routed
    return working - inner * key.keeps_input(*parts_of(facts, layer).downs)


def _attention_working(key: ActivationKey) -> float:
    """Gradients of q, k, v and the output; FlashAttention sums dq in fp32 and dk, dv per query head."""
    facts, tp = key.facts, key.tensor_parallel
    query, key_value = facts.heads * facts.head_dim / tp, facts.kv_heads * facts.head_dim / tp
    gradients = key.width * (facts.hidden_size + 2 * query + 2 * key_value) + 4 * query
    if facts.kv_heads < facts.heads:
        gradients += 2 * key.width * query
    if key.ulysses:  # sent and received copies of the all-to-alls
        gradients += 2 * key.width * (query + 2 * key_value)
    return gradients + _scores_working(key)


def _scores_working(key: ActivationKey) -> float:
    """Gradients of score matrices, where attention makes them."""
    if not quadratic(key):
        return 0.0
    return (key.width + 8) * key.facts.heads * key.window / key.tensor_parallel


def norm_working(key: ActivationKey) -> float:
    """Bytes per element alive in a norm's backward: four fp32 tensors and one 16-bit where it is written in Python."""
    if key.facts.norm == "layer" or key.fused or key.compiled:
        return 3 * key.width
    return key.width + 4 * max(key.norm_width, key.width)


def inner_width(key: ActivationKey, layer: Layer) -> float:
    """Elements of the MLP's inner layer that one token passes, all its experts together."""
    parts = parts_of(key.facts, layer)
    return sum(one.inputs * one.active for one in parts.downs) / key.tensor_parallel


def forward_working(key: ActivationKey, layer: Layer) -> float:
    """Beside its input, at the fullest moment of a block's forward without gradients: the MLP's inner tensors."""
    inner = inner_width(key, layer) * (3 if key.facts.gated_mlp else 2)
    tile = min(1.0, key.facts.hidden_size / key.window) if key.tiled_mlp else 1.0
    return key.width * (2 * key.facts.hidden_size + inner * tile) + _scores_working(key)
