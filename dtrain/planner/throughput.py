"""Seconds of one optimizer step, from first principles: pure functions of a Setup.

A micro-batch is a forward and a backward pass. In each, a rank's kernels (matmuls, attention, the memory traffic of
everything else) run one after the other, collectives run beside them, and the CPU must have launched all of it; the
slowest of the three is what the pass takes. Then comes the optimizer. `efficiency`, `traffic` and `collectives` hold
the rates and where they come from, `kernels` and `optimizer_time` what they are applied to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dtrain.planner.collectives import Link, link_over
from dtrain.planner.efficiency import rates_of
from dtrain.planner.kernels import (
    RECOMPUTED_ATTENTION,
    RECOMPUTED_MATMULS,
    BlockKey,
    Pass,
    compute_dtype,
    head_seconds,
    passes,
)
from dtrain.planner.optimizer_time import (
    NVME_BYTES_PER_S,
    accumulate_seconds,
    gradients_to_host,
    host_link,
    offload_seconds,
    optimizer_seconds,
)
from dtrain.planner.setup import DTYPE_BYTES, NF4_DOUBLE_QUANT_BYTES, Setup

CONTENTION = 0.11
"""Share of a collective's time that the kernels beside it lose: NCCL takes multiprocessors and bandwidth (fitted)."""
PREFETCH_SHARE: Mapping[str, float] = MappingProxyType({"zero3": 0.2, "fsdp2": 0.95})
"""Of a pass's kernels that gathers can hide behind: FSDP fetches a block ahead (assumed); DeepSpeed some elements, and
it waits for each submodule's own before it starts the next (Qwen-72B with LoRA on 4 A100: 10 s a step beside its
kernels, whatever the window, which is what gathering and copying take; fitted)."""
BACKWARD_SHARE = 0.6
"""Of a micro-batch's kernels: two thirds, less the first layers', whose gradients come last."""
STEP_OVERHEAD_SECONDS = 4e-3
"""Of a step outside the kernels: the next batch, the scheduler, the loss that is fetched (assumed)."""
JITTER_SECONDS_PER_DOUBLING = 5e-3
"""Hosts are late by chance, a step waits for the latest: this long with each doubling of ranks (fitted: 15 ms on 8, 33
on 128 and 48 on 512 ranks are missing in steps of half a second)."""
STRAGGLER_PER_DOUBLING = 0.004
"""Everybody waits for the slowest: step time grows by this share with each doubling of nodes (fitted)."""


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


def estimate_time(setup: Setup) -> StepTime:
    """Seconds of one step and where they go."""
    micro = _micro_batch(setup)
    parts = {name: setup.accumulation * seconds for name, seconds in micro.items()}
    parts["optimizer"] = optimizer_seconds(setup)
    parts["offload"] += offload_seconds(setup)
    boundary = _boundary_collectives(setup)
    last_backward = BACKWARD_SHARE * (sum(micro.values()) - micro["collectives"] - micro["offload"])
    parts["collectives"] += _exposed(boundary.overlapped, last_backward) + boundary.alone
    stragglers = STRAGGLER_PER_DOUBLING * _doublings(setup.profile.nodes)
    late = 0.0 if setup.profile.is_cpu else JITTER_SECONDS_PER_DOUBLING * _doublings(setup.ranks)
    parts["other"] = STEP_OVERHEAD_SECONDS + late + stragglers * sum(parts.values())
    return _told(setup, parts)


def slowed(time: StepTime, ratio: float) -> StepTime:
    """As this machine's runs measured it: every part times `ratio`."""
    return StepTime(
        step_seconds=ratio * time.step_seconds,
        parts=MappingProxyType({name: ratio * seconds for name, seconds in time.parts.items()}),
        tokens_per_second=time.tokens_per_second / ratio,
        tokens_per_second_per_gpu=time.tokens_per_second_per_gpu / ratio,
        mfu=None if time.mfu is None else time.mfu / ratio,
    )


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


def _doublings(number: int) -> float:
    """Of ranks or nodes, from one."""
    return float((max(1, number) - 1).bit_length())


# --- a micro-batch ------------------------------------------------------------------------------------------------


def _micro_batch(setup: Setup) -> dict[str, float]:
    """Seconds of one forward and backward, by part."""
    forward, backward = _with_copies(setup, *passes(BlockKey.of(setup)))
    head, loss = head_seconds(setup)
    beside_forward, beside_backward = _pass_collectives(setup)
    busy_forward = max(forward.kernels, forward.launches) + (head + loss) / 3
    busy_backward = max(backward.kernels, backward.launches) + (head + loss) * 2 / 3
    exposed = _beside(busy_forward, beside_forward, setup) + _beside(busy_backward, beside_backward, setup)
    return {
        "compute": forward.compute + backward.compute,
        "attention": forward.attention + backward.attention,
        "elementwise": forward.elementwise + backward.elementwise + accumulate_seconds(setup),
        "head": head + loss,
        "launches": max(0.0, forward.launches - forward.kernels) + max(0.0, backward.launches - backward.kernels),
        "collectives": exposed + sequence_parallel_seconds(setup) + tensor_parallel_seconds(setup),
        "offload": _exposed(gradients_to_host(setup), _room(busy_backward, setup) - beside_backward),
    }


def _with_copies(setup: Setup, forward: Pass, backward: Pass) -> tuple[Pass, Pass]:
    """And the copies around the collectives of sharded weights: what was gathered is copied out of the flat buffer
    (read and written), gradients are copied into one of the type that they are reduced in."""
    if setup.ranks <= 1 or not setup.shards_weights:
        return forward, backward
    rate = rates_of(setup.profile.gpu, compute_dtype(setup)).memory
    out = 2 * weight_bytes(setup) / rate
    gradients = setup.trained_parameters * setup.tensor_share
    into = gradients * (DTYPE_BYTES[setup.dtypes.compute] + DTYPE_BYTES[setup.dtypes.reduce]) / rate
    again = out if setup.reshard_after_forward else 0.0
    return forward.plus(Pass(elementwise=out)), backward.plus(Pass(elementwise=into + again))


def _beside(busy: float, collectives: float, setup: Setup) -> float:
    """What collectives add to a pass: what does not fit behind it, the first block's, and what kernels lose to them."""
    if collectives <= 0:
        return 0.0
    first = collectives / max(1, setup.facts.layer_count)
    return first + _exposed(collectives - first, _room(busy, setup))


def _room(busy: float, setup: Setup) -> float:
    """Of a pass's kernels, what transfers can hide behind; once: gradients go to the host after they are reduced."""
    return PREFETCH_SHARE.get(setup.sharding, 0.85) * busy


def _exposed(collectives: float, room: float) -> float:
    """Collectives beyond the room to hide them, and the time they take from the kernels beside them."""
    hidden = min(collectives, max(0.0, room))
    return collectives - hidden + CONTENTION * hidden


# --- collectives --------------------------------------------------------------------------------------------------


def _ring(setup: Setup) -> Link:
    return link_over(setup.profile, setup.shard_ranks if setup.shards_optimizer else setup.ranks)


def weight_bytes(setup: Setup) -> float:
    """Whole weights as they travel: trained ones in the compute type, frozen ones as they are held."""
    compute = DTYPE_BYTES[setup.dtypes.compute]
    quantised_twice = setup.double_quant and setup.dtypes.frozen == "nf4"
    frozen = NF4_DOUBLE_QUANT_BYTES if quantised_twice else DTYPE_BYTES[setup.dtypes.frozen]
    whole = setup.trained_parameters * compute + setup.frozen_parameters * frozen
    return whole * setup.tensor_share


def gradient_bytes(setup: Setup) -> float:
    return setup.trained_parameters * DTYPE_BYTES[setup.dtypes.reduce] * setup.tensor_share


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


def sequence_parallel_seconds(setup: Setup) -> float:
    """Of a micro-batch. Ulysses: queries, keys, values in and the output out, among a row's ranks, both ways."""
    size = setup.sequence_parallel_size
    if size <= 1:
        return 0.0
    facts = setup.facts
    channels = facts.head_dim * (2 * facts.heads + 2 * math.lcm(facts.kv_heads, size))
    rounds = 2 + RECOMPUTED_ATTENTION[setup.checkpointing]
    sent = setup.micro_batch_tokens * channels * DTYPE_BYTES[setup.dtypes.compute]
    link = link_over(setup.profile, size)
    return rounds * facts.layer_count * (sent * (size - 1) / size / link.bandwidth + 4 * link.latency)


def tensor_parallel_seconds(setup: Setup) -> float:
    """Of a micro-batch. All-reduces of the residual stream: two a block and pass. AutoTP's backward has one for each
    matrix that q, k, v or the MLP begin with."""
    size = setup.tensor_parallel_size
    if size <= 1:
        return 0.0
    stream = setup.micro_batch_tokens * setup.facts.hidden_size * DTYPE_BYTES[setup.dtypes.compute]
    forward = 2 * (1 + RECOMPUTED_MATMULS[setup.checkpointing])
    backward = (4 + int(setup.facts.gated_mlp)) if setup.autotp else 2
    return (forward + backward) * setup.facts.layer_count * link_over(setup.profile, size).reduce(stream)
