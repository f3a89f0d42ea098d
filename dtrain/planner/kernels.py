"""Kernel seconds of a micro-batch: the blocks' matmuls, attention and memory traffic, the head and the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from dtrain.hardware.gpus import Gpu
from dtrain.models.facts import Layer, Linear, ModelFacts
from dtrain.planner.activation_key import parts_of
from dtrain.planner.efficiency import (
    ALIGNMENT,
    BACKWARD_ATTENTION_FLOPS,
    UNALIGNED_MATMUL,
    Rates,
    attention_rate,
    rates_of,
)
from dtrain.planner.setup import DTYPE_BYTES, Setup
from dtrain.planner.traffic import LAUNCH_SECONDS, Traffic, layer_traffic

RECOMPUTED_MATMULS: Mapping[str, float] = MappingProxyType({"none": 0, "full": 1, "offload": 1, "selective": 0.5})
"""Share of a block's forward matmuls that backward runs again; selective keeps every second one. The last of a block is
not run again: recomputation stops once everything backward needs is there (torch.utils.checkpoint, early stop)."""
RECOMPUTED_ATTENTION: Mapping[str, float] = MappingProxyType({"none": 0, "full": 1, "offload": 1, "selective": 0})
RECOMPUTED_TRAFFIC: Mapping[str, float] = MappingProxyType({"none": 0, "full": 1, "offload": 1, "selective": 1})
LOGIT_BYTES: Mapping[str, float] = MappingProxyType({"eager": 44, "chunked": 44, "compiled": 12, "fused": 6})
"""Bytes moved per logit beside the head's matmuls. Eager: the cast to fp32 (2+4), the shifted copy (4+4), log-softmax
(4+4+4); backward its gradient (4+4+4) and the cast (4+2). Chunked (dtrain/train/loss.py): the cast (2+4), log-sum-exp
(20), softmax (8), the cast (4+2). Compiled: read twice and written once each way. Fused: one pass in all."""
HEAD_MATMULS = 3
"""Products with the head's matrix per trained position: one forward, two backward (ours makes them in forward)."""
CHUNK_SUM_BYTES = 12
"""Per element of the head's matrix and chunk: a chunk's product is written (2) and added to the fp32 sum (2+4+4)."""
ZERO3_LAUNCHES = 4.5
"""DeepSpeed's hooks around every submodule at stage 3, over the launches of the eager kernels: 3.3 ms and not 0.55 ms
for the forward of a Llama block whose kernels cost nothing (measured here, deepspeed 0.19.8, gloo's own work included),
four to five times as many in Qwen's runs on A100s (fitted)."""
ADAPTER_LAUNCHES = (10, 6)
"""Of peft's low-rank pair beside one linear, forward and backward, in launches of eager kernels: 0.6 and 0.3 ms more
for a Llama block with seven of them, whose kernels cost nothing (measured here, peft 0.19, torch 2.13)."""
CHECKPOINT_LAUNCHES = (1.55, 2.1)
"""CPU time of an eager block's forward under torch.utils.checkpoint, and of running it again in backward, over that of
a plain forward: hooks around every tensor that is kept (measured here in the same way: 0.89 and 1.25 ms, not 0.55)."""
DEQUANT_BYTES = 4.5
"""Per weight of a frozen 4-bit matrix and pass: half a byte read, two written, two read back by the matmul."""
FP8_CAST_BYTES = (6, 3)
"""Per element that goes into an fp8 matmul: read for its largest value, read again, written straight and transposed;
where norms and activations are kernels of their own (Transformer Engine), these write it so and know the scale."""
LOW_RANK_PASSES = (3.0, 2.0)
"""Of a linear's input and output that its low-rank pair moves forward: eager peft reads the input, writes the update,
scales it and adds it (1 + 6 by half); a compiler scales and adds at once (1 + 4). Backward costs twice."""
DORA_WEIGHT_BYTES = 44
"""Per weight and forward pass: DoRA makes the whole updated matrix in fp32 to take the norm of its columns (peft,
dora.py: an identity 8, the product of the pair 4, its scaling 8, the weight's cast 6, their sum 12, the norm 4)."""
EAGER_SCORE_BYTES, COMPILED_SCORE_BYTES = 24.0, 8.0
"""Per attention score forward without a fused kernel: mask, softmax in fp32 and back, each reading and writing; a
compiler makes one pass of them (2 + 2 around it, 2 + 2 in it). Backward costs twice."""
FUSED_FP32_ATTENTION_SHARE = 0.5
"""Of fp32's matmul rate: FlashAttention has no fp32, torch's memory-efficient and CPU kernels do it (assumed)."""
MOE_SHARE = 0.6
"""Rate of grouped expert matmuls over plain ones: experts are uneven (assumed; no fitting row has experts)."""


def compute_dtype(setup: Setup) -> str:
    return "tf32" if setup.tf32 and setup.dtypes.compute == "fp32" else setup.dtypes.compute


@dataclass(frozen=True)
class Pass:
    """Kernel seconds of one pass of a rank over a micro-batch, blocks only."""

    compute: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    launches: float = 0.0
    """CPU seconds to send the kernels."""

    @property
    def kernels(self) -> float:
        return self.compute + self.attention + self.elementwise

    def plus(self, other: Pass, times: float = 1.0) -> Pass:
        return Pass(
            self.compute + times * other.compute,
            self.attention + times * other.attention,
            self.elementwise + times * other.elementwise,
            self.launches + times * other.launches,
        )


@dataclass(frozen=True)
class BlockKey:
    """All that the blocks' kernels depend on, so that a search times each block once."""

    facts: ModelFacts
    gpu: Gpu
    dtype: str
    element_bytes: float
    tokens: int
    window: int
    attention: str
    compiled: bool
    fused: bool
    tensor_parallel: int
    targets: frozenset[str] | None
    """Linears with an adapter; None where everything is trained."""
    dora: bool
    frozen: str
    recompute: str
    tiled: bool
    hooks: float
    """CPU time of a block's launches over that of its kernels alone."""

    @classmethod
    def of(cls, setup: Setup) -> BlockKey:
        adapter = setup.adapter
        return cls(
            facts=setup.facts,
            gpu=setup.profile.gpu,
            dtype="fp8" if setup.fp8_linears else compute_dtype(setup),
            element_bytes=DTYPE_BYTES[setup.dtypes.compute],
            tokens=setup.micro_batch_tokens,
            window=setup.sequence_len,
            attention=setup.attention,
            compiled=setup.compiled,
            fused=setup.fused_kernels,
            tensor_parallel=setup.tensor_parallel_size,
            targets=adapter.targets if adapter else None,
            dora=adapter.dora if adapter else False,
            frozen=setup.dtypes.frozen if adapter else "",
            recompute=setup.checkpointing,
            tiled=setup.tiled_mlp,
            hooks=ZERO3_LAUNCHES if setup.sharding == "zero3" else 1.0,
        )


@lru_cache(maxsize=65536)
def passes(key: BlockKey) -> tuple[Pass, Pass]:
    """Forward and backward (recompute included) of all blocks."""
    forward, backward = Pass(), Pass()
    for layer, count in key.facts.layers:
        once, again = _layer_passes(key, layer)
        forward, backward = forward.plus(once, count), backward.plus(again, count)
    return forward, backward


def _layer_passes(key: BlockKey, layer: Layer) -> tuple[Pass, Pass]:
    rates = rates_of(key.gpu, key.dtype)
    products = [_linear_seconds(key, one, rates) for one in layer.linears]
    matmul, backward_matmul = sum(one[0] for one in products), sum(one[1] for one in products)
    again_matmul = RECOMPUTED_MATMULS[key.recompute] * (matmul - products[-1][0])
    if key.tiled:
        parts = parts_of(key.facts, layer)
        mlp = (*parts.ups, *parts.downs)
        again_matmul += sum(one[0] for one, linear in zip(products, layer.linears, strict=True) if linear in mlp)
    attention = _attention_seconds(key, layer)
    traffic = layer_traffic(key.facts, layer, key.compiled, key.fused)
    per_byte = key.tokens * key.element_bytes / 2 / key.tensor_parallel / rates.memory
    launches = _launch_seconds(key, layer, traffic)
    forward = Pass(matmul, attention[0], traffic.forward * per_byte, launches[0])
    again = RECOMPUTED_TRAFFIC[key.recompute]
    backward = Pass(
        backward_matmul + again_matmul,
        attention[1] + RECOMPUTED_ATTENTION[key.recompute] * attention[0],
        (traffic.backward + again * traffic.forward) * per_byte,
        launches[1],
    )
    return (_one_by_one(forward), _one_by_one(backward)) if key.gpu.name == "cpu" else (forward, backward)


def _launch_seconds(key: BlockKey, layer: Layer, traffic: Traffic) -> tuple[float, float]:
    """CPU time of a block's kernels in forward and in backward, the recomputation included."""
    adapted = sum(one.name in key.targets for one in layer.linears) if key.targets else 0
    forward = traffic.forward_kernels + adapted * ADAPTER_LAUNCHES[0]
    backward = traffic.backward_kernels + adapted * ADAPTER_LAUNCHES[1]
    if RECOMPUTED_TRAFFIC[key.recompute]:
        first, again = (1.0, 1.0) if key.compiled else CHECKPOINT_LAUNCHES
        forward, backward = first * forward, backward + again * forward
    return key.hooks * LAUNCH_SECONDS * forward, key.hooks * LAUNCH_SECONDS * backward


def _one_by_one(told: Pass) -> Pass:
    """On a CPU the same thread launches and computes."""
    return Pass(told.compute, told.attention, told.elementwise + told.launches, 0.0)


# --- matmuls ------------------------------------------------------------------------------------------------------


def _linear_seconds(key: BlockKey, linear: Linear, rates: Rates) -> tuple[float, float]:
    """Forward, and backward for the input's gradient and, where it is trained, the weight's."""
    rows = key.tokens * linear.active / linear.count
    inputs, outputs = linear.inputs, linear.outputs / key.tensor_parallel
    experts = linear.count if linear.count > 1 else 1
    share = MOE_SHARE if experts > 1 else 1.0
    forward = experts * rates.matmul_seconds(rows, inputs, outputs) / share
    grad_input = experts * rates.matmul_seconds(rows, outputs, inputs) / share
    if key.dtype == "fp8":
        cast = FP8_CAST_BYTES[key.fused] / rates.memory
        forward += cast * (key.tokens * inputs + linear.count * inputs * outputs)
        grad_input += cast * key.tokens * outputs
    if key.targets is None:
        return forward, grad_input + experts * rates.matmul_seconds(inputs, rows, outputs) / share
    unpack = _unpack_seconds(key, linear, rates)
    low_rank = 0.0
    if linear.name in key.targets:
        moved = LOW_RANK_PASSES[key.compiled or key.fused] * key.element_bytes * (linear.inputs + linear.outputs)
        low_rank = key.tokens * moved / rates.memory
        if key.dora:
            forward += DORA_WEIGHT_BYTES * linear.inputs * linear.outputs / rates.memory
    return forward + unpack + low_rank, grad_input + unpack + 2 * low_rank


def _unpack_seconds(key: BlockKey, linear: Linear, rates: Rates) -> float:
    """Quantised weights become compute ones before each product."""
    if key.frozen not in ("nf4", "int8"):
        return 0.0
    return DEQUANT_BYTES * linear.count * linear.inputs * linear.outputs / rates.memory


# --- attention ----------------------------------------------------------------------------------------------------


def _attention_seconds(key: BlockKey, layer: Layer) -> tuple[float, float]:
    """Forward and backward of one block's attention."""
    context = mean_context(key.window, layer.attention_window)
    channels = key.facts.heads * key.facts.head_dim / key.tensor_parallel
    if key.attention == "eager":
        return _eager_attention(key, channels)
    flops = 4 * key.tokens * channels * context
    rate = attention_rate(key.gpu, kernel_of(key), key.facts.head_dim, context)
    if key.dtype in ("fp32", "tf32"):
        rate = FUSED_FP32_ATTENTION_SHARE * rates_of(key.gpu, key.dtype).matmul
    return flops / rate, BACKWARD_ATTENTION_FLOPS * flops / rate


def kernel_of(key: BlockKey) -> str:
    """MPT's own modelling code brings a Triton kernel of FlashAttention's first generation; other models take any."""
    return "triton" if key.facts.family == "mpt" else key.attention


def _eager_attention(key: BlockKey, channels: float) -> tuple[float, float]:
    """Two full score matrices as matmuls, and the scores' traffic: mask, softmax in fp32 and back."""
    rates = rates_of(key.gpu, key.dtype)
    flops = 4 * key.tokens * channels * key.window
    per_score = COMPILED_SCORE_BYTES if key.compiled else EAGER_SCORE_BYTES
    scores = per_score * key.tokens * key.facts.heads / key.tensor_parallel * key.window / rates.memory
    forward = flops / rates.matmul + scores
    return forward, 2 * forward


def mean_context(window: int, look_back: int | None) -> float:
    """Positions a token attends to, on average over a causal window."""
    if look_back is None or look_back >= window:
        return window / 2
    return look_back - look_back * look_back / (2 * window)


# --- the head -----------------------------------------------------------------------------------------------------


def head_seconds(setup: Setup) -> tuple[float, float]:
    """The head's matmuls, and the loss's memory traffic, of one micro-batch."""
    facts, rates = setup.facts, rates_of(setup.profile.gpu, compute_dtype(setup))
    rows, vocab = setup.trained_positions, facts.vocab_size / setup.vocabulary_ways
    trained = setup.adapter is None or "lm_head" in setup.adapter.modules_to_save
    matmul = (HEAD_MATMULS if trained else HEAD_MATMULS - 1) * rates.matmul_seconds(rows, facts.hidden_size, vocab)
    if facts.vocab_size % ALIGNMENT and not setup.compiled and compute_dtype(setup) != "fp32":
        matmul *= UNALIGNED_MATMUL
    moved = LOGIT_BYTES[setup.cross_entropy] * rows * vocab
    return matmul, (moved + (_head_gradient_bytes(setup) if trained else 0.0)) / rates.memory


def _head_gradient_bytes(setup: Setup) -> float:
    """The embedding's gradient is filled and added to; a chunked loss sums the head's over its chunks."""
    matrix = setup.facts.hidden_size * setup.facts.vocab_size / setup.vocabulary_ways
    chunks = math.ceil(setup.trained_positions / setup.cross_entropy_chunk_tokens)
    summed = CHUNK_SUM_BYTES * chunks if setup.cross_entropy == "chunked" else 0
    return matrix * (2 * DTYPE_BYTES[setup.dtypes.gradient] + summed)
