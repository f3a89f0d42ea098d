"""Seconds of one optimizer step, from first principles: pure functions of a Setup.

A micro-batch is a forward and a backward pass. In each, a rank's kernels (matmuls, attention, the memory traffic of
everything else) run one after the other, collectives run beside them, and the CPU must have launched all of it; the
slowest of the three is what the pass takes. Then comes the optimizer. `efficiency`, `traffic` and `collectives` hold
the rates and where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from dtrain.hardware.gpus import Gpu
from dtrain.models.facts import Layer, Linear, ModelFacts
from dtrain.planner.collectives import Link, link_over
from dtrain.planner.efficiency import (
    BACKWARD_ATTENTION_FLOPS,
    Rates,
    attention_rate,
    rates_of,
)
from dtrain.planner.setup import DTYPE_BYTES, NF4_DOUBLE_QUANT_BYTES, Setup
from dtrain.planner.traffic import LAUNCH_SECONDS, layer_traffic

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

FOREACH_PASSES = 80 / 28
"""An unfused AdamW reads and writes 80 bytes a parameter in eight kernels, a fused one 28 (torch/optim/adamw.py)."""
CLIP_PASSES = 3
"""The norm reads all gradients, the scaling reads and writes them."""
CPU_ADAM_PARAMETERS_PER_S = 4.0e9
"""DeepSpeedCPUAdam on a two-socket node: 2.6 s for 10 billion parameters (ZeRO-Offload, arXiv 2101.06840, table 4)."""
PINNED_SHARE = 0.8
"""Of PCIe's rate that copies from and to pinned memory reach: 25 of 31 GB/s on an A100 (CUDA's bandwidthTest)."""
HOST_MEMORY_BYTES_PER_S = 200e9
"""That all GPUs of a node together draw from a two-socket host (DDR4-3200, eight channels each, half of its peak)."""
NVME_BYTES_PER_S = 5.0e9
"""Of one node's drives, reading or writing (ZeRO-Infinity, arXiv 2104.07857, measured 3 to 6 GB/s a drive pair)."""
CONTENTION = 0.11
"""Share of a collective's time that the kernels beside it lose: NCCL takes multiprocessors and bandwidth (fitted)."""
PREFETCH_SHARE: Mapping[str, float] = MappingProxyType({"zero3": 0.85, "fsdp2": 0.95})
"""Of a pass's kernels that gathers can hide behind: DeepSpeed prefetches some elements, FSDP the whole next block."""
ZERO3_LAUNCHES = 5.5
"""DeepSpeed's hooks around every submodule at stage 3, in launches of the eager kernels: 3.3 ms instead of 0.5 ms for
the forward of a Llama block whose kernels cost nothing (measured here, one gloo rank, deepspeed 0.19.8)."""
BACKWARD_SHARE = 0.6
"""Of a micro-batch's kernels: two thirds, less the first layers', whose gradients come last."""
STEP_OVERHEAD_SECONDS = 4e-3
"""Of a step outside the kernels: the next batch, the scheduler, the loss that is fetched (fitted)."""
DEQUANT_BYTES = 4.5
"""Per weight of a frozen 4-bit matrix and pass: half a byte read, two written, two read back by the matmul."""
STRAGGLER_PER_DOUBLING = 0.004
"""Everybody waits for the slowest: step time grows by this share with each doubling of nodes (fitted)."""
FP8_CAST_BYTES = 6
"""Per element that goes into an fp8 matmul: read for its largest value, read again, written straight and transposed."""
FUSED_FP32_ATTENTION_SHARE = 0.5
"""Of fp32's matmul rate: FlashAttention has no fp32, torch's memory-efficient and CPU kernels do it (assumed)."""
MOE_SHARE = 0.6
"""Rate of grouped expert matmuls over plain ones: experts are uneven (assumed; no fitting row has experts)."""


@dataclass(frozen=True)
class StepTime:
    """One optimizer step over full windows."""

    step_seconds: float
    parts: Mapping[str, float]
    """Seconds by what they are spent on; they add up to `step_seconds`."""
    tokens_per_second: float
    tokens_per_second_per_gpu: float
    mfu: float | None
    """Causal model FLOPs (6·parameters + 6·layers·hidden·sequence per token) over the dense datasheet peak, if any."""


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


def estimate_time(setup: Setup) -> StepTime:
    """Seconds of one step and where they go."""
    micro = _micro_batch(setup)
    parts = {name: setup.accumulation * seconds for name, seconds in micro.items()}
    parts["optimizer"] = optimizer_seconds(setup)
    parts["offload"] += offload_seconds(setup)
    boundary = _boundary_collectives(setup)
    last_backward = BACKWARD_SHARE * (sum(micro.values()) - micro["collectives"])
    parts["collectives"] += _exposed(boundary.overlapped, last_backward) + boundary.alone
    stragglers = STRAGGLER_PER_DOUBLING * _doublings(setup.profile.nodes)
    parts["other"] = STEP_OVERHEAD_SECONDS + stragglers * sum(parts.values())
    return _told(setup, parts)


def _told(setup: Setup, parts: dict[str, float]) -> StepTime:
    seconds = sum(parts.values())
    tokens = setup.step_tokens / seconds
    return StepTime(
        step_seconds=seconds,
        parts=MappingProxyType(parts),
        tokens_per_second=tokens,
        tokens_per_second_per_gpu=tokens / setup.ranks,
        mfu=model_flops_utilisation(setup, tokens),
    )


def model_flops_utilisation(setup: Setup, tokens_per_second: float) -> float | None:
    """The contract's MFU; None where the card's datasheet has no rate for the precision."""
    gpu, facts = setup.profile.gpu, setup.facts
    peak = gpu.tflops.get(compute_dtype(setup)) or 0.0
    if not peak:
        return None
    per_token = 6 * facts.active_parameters + 6 * facts.layer_count * facts.hidden_size * setup.sequence_len
    return tokens_per_second * per_token / (1e12 * peak * setup.ranks)


def compute_dtype(setup: Setup) -> str:
    return "tf32" if setup.tf32 and setup.dtypes.compute == "fp32" else setup.dtypes.compute


def _doublings(nodes: int) -> float:
    return float((max(1, nodes) - 1).bit_length())


# --- a micro-batch ------------------------------------------------------------------------------------------------


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
    rank: int
    frozen: str
    recompute: str
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
            rank=adapter.rank if adapter else 0,
            frozen=setup.dtypes.frozen if adapter else "",
            recompute=setup.checkpointing,
            hooks=ZERO3_LAUNCHES if setup.sharding == "zero3" else 1.0,
        )


def _micro_batch(setup: Setup) -> dict[str, float]:
    """Seconds of one forward and backward, by part."""
    forward, backward = passes(BlockKey.of(setup))
    head, loss = head_seconds(setup)
    moved = _pass_collectives(setup)
    exposed = sum(
        _beside(max(one.kernels, one.launches) + (head + loss) * share, seconds, setup)
        for one, share, seconds in ((forward, 1 / 3, moved[0]), (backward, 2 / 3, moved[1]))
    )
    return {
        "compute": forward.compute + backward.compute,
        "attention": forward.attention + backward.attention,
        "elementwise": forward.elementwise + backward.elementwise + _accumulate_seconds(setup),
        "head": head + loss,
        "launches": max(0.0, forward.launches - forward.kernels) + max(0.0, backward.launches - backward.kernels),
        "collectives": exposed + _sequence_parallel(setup) + _tensor_parallel(setup),
        "offload": _exposed(gradients_to_host(setup), max(backward.kernels, backward.launches)),
    }


def _beside(busy: float, collectives: float, setup: Setup) -> float:
    """What collectives add to a pass: what does not fit behind it, the first block's, and what kernels lose to them."""
    if collectives <= 0:
        return 0.0
    first = collectives / max(1, setup.facts.layer_count)
    return first + _exposed(collectives - first, PREFETCH_SHARE.get(setup.sharding, 0.85) * busy)


def _exposed(collectives: float, room: float) -> float:
    """Collectives beyond the room to hide them, and the time they take from the kernels beside them."""
    hidden = min(collectives, max(0.0, room))
    return collectives - hidden + CONTENTION * hidden


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
    attention = _attention_seconds(key, layer)
    traffic = layer_traffic(key.facts, layer, key.compiled, key.fused)
    per_byte = key.tokens * key.element_bytes / 2 / key.tensor_parallel / rates.memory
    launch = key.hooks * LAUNCH_SECONDS
    forward = Pass(matmul, attention[0], traffic.forward * per_byte, launch * traffic.forward_kernels)
    again = RECOMPUTED_TRAFFIC[key.recompute]
    backward = Pass(
        backward_matmul + again_matmul,
        attention[1] + RECOMPUTED_ATTENTION[key.recompute] * attention[0],
        (traffic.backward + again * traffic.forward) * per_byte,
        launch * (traffic.backward_kernels + again * traffic.forward_kernels),
    )
    return (_one_by_one(forward), _one_by_one(backward)) if key.gpu.name == "cpu" else (forward, backward)


def _one_by_one(told: Pass) -> Pass:
    """On a CPU the same thread launches and computes."""
    return Pass(told.compute, told.attention, told.elementwise + told.launches, 0.0)


def _linear_seconds(key: BlockKey, linear: Linear, rates: Rates) -> tuple[float, float]:
    """Forward, and backward for the input's gradient and, where it is trained, the weight's."""
    rows = key.tokens * linear.active / linear.count
    inputs, outputs = linear.inputs, linear.outputs / key.tensor_parallel
    experts = linear.count if linear.count > 1 else 1
    share = MOE_SHARE if experts > 1 else 1.0
    forward = experts * rates.matmul_seconds(rows, inputs, outputs) / share
    grad_input = experts * rates.matmul_seconds(rows, outputs, inputs) / share
    if key.dtype == "fp8":
        forward += FP8_CAST_BYTES * (key.tokens * inputs + linear.count * inputs * outputs) / rates.memory
        grad_input += FP8_CAST_BYTES * key.tokens * outputs / rates.memory
    if key.targets is None:
        return forward, grad_input + experts * rates.matmul_seconds(inputs, rows, outputs) / share
    unpack = _unpack_seconds(key, linear, rates)
    low_rank = 0.0
    if linear.name in key.targets:
        low_rank = 3 * key.tokens * key.element_bytes * (linear.inputs + linear.outputs) / rates.memory
    return forward + unpack + low_rank, grad_input + unpack + 2 * low_rank


def _unpack_seconds(key: BlockKey, linear: Linear, rates: Rates) -> float:
    """Quantised weights become compute ones before each product."""
    if key.frozen not in ("nf4", "int8"):
        return 0.0
    return DEQUANT_BYTES * linear.count * linear.inputs * linear.outputs / rates.memory


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
    scores = 24.0 * key.tokens * key.facts.heads / key.tensor_parallel * key.window / rates.memory
    forward = flops / rates.matmul + scores
    return forward, 2 * forward


def mean_context(window: int, look_back: int | None) -> float:
    """Positions a token attends to, on average over a causal window."""
    if look_back is None or look_back >= window:
        return window / 2
    return look_back - look_back * look_back / (2 * window)


def head_seconds(setup: Setup) -> tuple[float, float]:
    """The head's matmuls, and the loss's memory traffic, of one micro-batch."""
    facts, rates = setup.facts, rates_of(setup.profile.gpu, compute_dtype(setup))
    rows, vocab = setup.trained_positions, facts.vocab_size / setup.tensor_parallel_size
    trained = setup.adapter is None or "lm_head" in setup.adapter.modules_to_save
    matmul = (HEAD_MATMULS if trained else HEAD_MATMULS - 1) * rates.matmul_seconds(rows, facts.hidden_size, vocab)
    moved = LOGIT_BYTES[setup.cross_entropy] * rows * vocab
    return matmul, (moved + (_head_gradient_bytes(setup) if trained else 0.0)) / rates.memory


def _head_gradient_bytes(setup: Setup) -> float:
    """The embedding's gradient is filled and added to; a chunked loss sums the head's over its chunks."""
    matrix = setup.facts.hidden_size * setup.facts.vocab_size / setup.tensor_parallel_size
    chunks = math.ceil(setup.trained_positions / setup.cross_entropy_chunk_tokens)
    summed = CHUNK_SUM_BYTES * chunks if setup.cross_entropy == "chunked" else 0
    return matrix * (2 * DTYPE_BYTES[setup.dtypes.gradient] + summed)


def _accumulate_seconds(setup: Setup) -> float:
    """Adding a micro-batch's gradients to the sum: read both, write one (only once is a plain write)."""
    dtypes = setup.dtypes
    summed = DTYPE_BYTES[dtypes.accumulation or dtypes.gradient]
    share = setup.shard_ranks if setup.shards_gradients else 1
    once = DTYPE_BYTES[dtypes.gradient] + summed * (2 if setup.accumulation > 1 else 1)
    return once * setup.trained_parameters / share / setup.tensor_parallel_size / _memory_rate(setup)


def _memory_rate(setup: Setup) -> float:
    return rates_of(setup.profile.gpu, compute_dtype(setup)).memory


# --- collectives --------------------------------------------------------------------------------------------------


def _ring(setup: Setup) -> Link:
    return link_over(setup.profile, setup.shard_ranks if setup.shards_optimizer else setup.ranks)


def weight_bytes(setup: Setup) -> float:
    """Whole weights as they travel: trained ones in the compute type, frozen ones as they are held."""
    compute = DTYPE_BYTES[setup.dtypes.compute]
    frozen = NF4_DOUBLE_QUANT_BYTES if setup.double_quant else DTYPE_BYTES[setup.dtypes.frozen]
    whole = setup.trained_parameters * compute + setup.frozen_parameters * frozen
    return whole / setup.tensor_parallel_size


def gradient_bytes(setup: Setup) -> float:
    return setup.trained_parameters * DTYPE_BYTES[setup.dtypes.reduce] / setup.tensor_parallel_size


def _pass_collectives(setup: Setup) -> tuple[float, float]:
    """Seconds of every micro-batch's collectives beside forward and beside backward."""
    if setup.ranks <= 1:
        return 0.0, 0.0
    ring, layers = _ring(setup), setup.facts.layer_count + 1
    reduced = ring.gather(gradient_bytes(setup), layers) if setup.shards_gradients else 0.0
    if not setup.shards_weights:
        return 0.0, reduced
    gathered = ring.gather(weight_bytes(setup), layers) + _from_host(setup)
    return gathered, reduced + (gathered if setup.reshard_after_forward else 0.0)


def _from_host(setup: Setup) -> float:
    """Offloaded weights come over PCIe, a shard per rank, before they are gathered."""
    if setup.offload_params == "none":
        return 0.0
    shard = weight_bytes(setup) / setup.shard_ranks
    rate = host_link(setup)
    if setup.offload_params == "nvme":
        rate = min(rate, NVME_BYTES_PER_S / setup.profile.gpus_per_node)
    return shard / rate


@dataclass(frozen=True)
class Boundary:
    """Collectives once per optimizer step."""

    overlapped: float = 0.0
    """Beside the last backward."""
    alone: float = 0.0


def _boundary_collectives(setup: Setup) -> Boundary:
    if setup.ranks <= 1:
        return Boundary()
    ring, gradients = _ring(setup), gradient_bytes(setup)
    if setup.sharding in ("zero0", "ddp"):
        return Boundary(overlapped=link_over(setup.profile, setup.ranks).reduce(gradients, 8))
    back = 0.0
    if setup.sharding in ("zero1", "zero2"):
        back = ring.gather(setup.trained_parameters * DTYPE_BYTES[setup.dtypes.weights], 8)
    reduced = ring.gather(gradients, 8) if setup.sharding == "zero1" else 0.0
    return Boundary(overlapped=reduced + _replicas(setup, gradients), alone=back)


def _replicas(setup: Setup, gradients: float) -> float:
    """HSDP: the shards' gradients are summed over the copies of the model."""
    if setup.replicate_size <= 1:
        return 0.0
    across = link_over(setup.profile, setup.replicate_size, setup.shard_ranks < setup.profile.gpus_per_node)
    return across.reduce(gradients / setup.shard_ranks, 8)


def _sequence_parallel(setup: Setup) -> float:
    """Ulysses: queries, keys, values in and the output out, exchanged among the ranks of a sequence, both ways."""
    size = setup.sequence_parallel_size
    if size <= 1:
        return 0.0
    facts = setup.facts
    channels = facts.head_dim * (2 * facts.heads + 2 * max(facts.kv_heads, size))
    rounds = 2 + RECOMPUTED_ATTENTION[setup.checkpointing]
    sent = setup.micro_batch_tokens * channels * DTYPE_BYTES[setup.dtypes.compute]
    link = link_over(setup.profile, size)
    return rounds * facts.layer_count * (sent * (size - 1) / size / link.bandwidth + 4 * link.latency)


def _tensor_parallel(setup: Setup) -> float:
    """Two all-reduces of the residual stream a block and pass."""
    size = setup.tensor_parallel_size
    if size <= 1:
        return 0.0
    stream = setup.micro_batch_tokens * setup.facts.hidden_size * DTYPE_BYTES[setup.dtypes.compute]
    rounds = 2 + RECOMPUTED_MATMULS[setup.checkpointing]
    return rounds * setup.facts.layer_count * 2 * link_over(setup.profile, size).reduce(stream)


# --- the optimizer ------------------------------------------------------------------------------------------------


def stepped_parameters(setup: Setup) -> float:
    """Parameters this rank's optimizer steps."""
    share = setup.shard_ranks if setup.shards_optimizer else 1
    return setup.trained_parameters / share / setup.tensor_parallel_size


def optimizer_seconds(setup: Setup) -> float:
    """Memory traffic of clipping and of the step, on the card."""
    dtypes, spec, parameters = setup.dtypes, setup.optimizer, stepped_parameters(setup)
    gradient = DTYPE_BYTES[dtypes.accumulation or dtypes.gradient]
    clip = CLIP_PASSES * gradient if setup.gradient_clipping else 0.0
    if setup.offload_optimizer != "none":
        return clip * parameters / _memory_rate(setup)
    stepped = DTYPE_BYTES[dtypes.master or dtypes.weights]
    copied = stepped + DTYPE_BYTES[dtypes.weights] if dtypes.master else 0.0
    step = (2 * stepped + 2 * spec.state_bytes + gradient) * (FOREACH_PASSES if spec.step_bytes else 1.0)
    rate = 0.5e9 * setup.profile.gpu.pcie_gb_per_s if spec.paged and _pages_out(setup) else _memory_rate(setup)
    return (clip + copied) * parameters / _memory_rate(setup) + step * parameters / rate


def _pages_out(setup: Setup) -> bool:
    """Paged states leave the card only where it is full; a plan within the headroom leaves them there."""
    return False


def host_link(setup: Setup) -> float:
    """Bytes/s of one GPU from or to pinned host memory, while its neighbours do the same."""
    profile = setup.profile
    return min(PINNED_SHARE * 1e9 * profile.gpu.pcie_gb_per_s, HOST_MEMORY_BYTES_PER_S / profile.gpus_per_node)


def gradients_to_host(setup: Setup) -> float:
    """DeepSpeed sums offloaded gradients on the card but keeps the sum on the host: every micro-batch fetches its shard
    and sends it back, the first only sends (stage3.py partition_grads, stage_1_and_2.py copy_grads_in_partition)."""
    if setup.offload_optimizer == "none" or setup.accumulation == 1:
        return 0.0
    summed = DTYPE_BYTES[setup.dtypes.accumulation or setup.dtypes.gradient] * stepped_parameters(setup)
    return summed * (2 - 1 / setup.accumulation) / host_link(setup)


def offload_seconds(setup: Setup) -> float:
    """Gradients to the host, the step on its cores, weights back; drives where states lie there."""
    if setup.offload_optimizer == "none":
        return 0.0
    profile, parameters = setup.profile, stepped_parameters(setup)
    dtypes = setup.dtypes
    moved = DTYPE_BYTES[dtypes.gradient] + DTYPE_BYTES[dtypes.weights]
    link = moved * parameters / host_link(setup)
    node = parameters * profile.gpus_per_node
    step = node / CPU_ADAM_PARAMETERS_PER_S
    drives = 0.0
    if setup.offload_optimizer == "nvme":
        drives = 2 * (setup.optimizer.state_bytes + 4) * node / NVME_BYTES_PER_S
    return link + max(step, drives)
