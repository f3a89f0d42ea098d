"""What the count of a block's activations depends on, and its matrices by role."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from dtrain.models.facts import Layer, Linear, ModelFacts
from dtrain.planner.setup import DTYPE_BYTES, Setup


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
    segment: int | None
    tensor_parallel: int
    stream_ways: int
    gathered_ways: int
    """Parts in which the inputs of a block's first matmuls are kept: Megatron gathers them again, DTensor does not."""
    trained: bool
    targets: frozenset[str]
    adapter_width: float
    dropout: bool
    dora: bool
    transformers_code: bool
    packed: bool
    tile_share: float | None
    """Tokens of a tile of the MLP, of all; None where nothing is tiled."""
    sequence_parallel: int
    frozen_keeps: bool
    quantised: bool
    fp32_routing: bool
    on_cpu: bool

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
            segment=setup.segment_memory,
            tensor_parallel=setup.tensor_parallel_size,
            stream_ways=setup.stream_ways,
            gathered_ways=setup.stream_ways if setup.is_deepspeed else 1,
            trained=adapter is None,
            targets=adapter.targets if adapter else frozenset(),
            adapter_width=DTYPE_BYTES[setup.dtypes.compute if setup.shards_weights else setup.dtypes.weights],
            dropout=bool(adapter and adapter.dropout),
            dora=bool(adapter and adapter.dora),
            transformers_code=setup.transformers_code,
            packed=setup.packed,
            tile_share=min(1.0, setup.facts.hidden_size / setup.micro_batch_tokens) if setup.tiled_mlp else None,
            sequence_parallel=setup.sequence_parallel_size,
            frozen_keeps=setup.frozen_keeps_inputs,
            quantised=setup.dtypes.frozen in ("nf4", "int8"),
            fp32_routing=setup.fp32_routing,
            on_cpu=setup.profile.is_cpu,
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
