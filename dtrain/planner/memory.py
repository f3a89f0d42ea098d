"""Memory of one GPU as a timeline of phases, each the sum of its terms; the peak is the largest of them.

Three figures come out of it, as they are measured: `allocated` is what torch's tensors take, `reserved` what its
caching allocator holds for them, `smi` what nvidia-smi shows for the process (the CUDA context, NCCL and library
workspaces on top). On a CPU profile all three are the live tensor bytes of a rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from dtrain.hardware.profiles import Profile
from dtrain.planner import nvme
from dtrain.planner.activation_key import ActivationKey
from dtrain.planner.activations import NO_LAYER, LayerBytes, layer_bytes, tile_sums
from dtrain.planner.attention_bytes import mask_kept, rotary_tables
from dtrain.planner.cost import checkpoint_bytes
from dtrain.planner.logits import evaluation_positions, loss_bytes
from dtrain.planner.norm_bytes import norm_saved, norm_working
from dtrain.planner.pools import EXPANDABLE_FRAGMENTATION, fragmentation, idle_blocks, idle_gradients
from dtrain.planner.setup import DTYPE_BYTES, Setup
from dtrain.planner.states import States
from dtrain.units import GIB

TERMS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "runtime")

CUDA_CONTEXT_GIB = 0.7
"""Context and loaded kernels of one process: 0.47 lazily loaded to 0.92 (A100, torch 2.1), 0.55 in ml-engineering."""
NCCL_GIB = 1.0
"""Communicators of one process: 1.45 after a first barrier, 1 to 2 usual with several groups (planning_facts.md)."""
NETWORK_GIB = 1.0
"""What channels to other nodes add to it (0.5 per communicator seen)."""
CUBLAS_WORKSPACE_BYTES = 8.125 * 2**20
"""torch/aten/src/ATen/cuda/CUDABlas.cpp: 4096*2 + 16*8 KiB per handle and stream; 32 MiB on Hopper and later."""
HOPPER_WORKSPACE_BYTES = 32 * 2**20

HOST_HEADROOM = 0.10
"""Share of host memory kept free for the page cache, the data and the system."""
SAVED_COPY_SHARE = 0.8
"""Of the host memory that is free, what the saver's copy may take (dtrain/train/saver.py)."""
HOST_BASE_GIB = 2.5
"""Resident host memory of one rank's Python process with torch, CUDA and DeepSpeed loaded."""

UNCERTAINTY: Mapping[str, float] = {
    "weights": 0.005, "gradients": 0.05, "optimizer": 0.01, "activations": 0.10, "logits": 0.08, "buffers": 0.25,
    "runtime": 0.3,
}  # fmt: skip
"""Relative standard deviation of each term: states are arithmetic, activations depend on kernels, buffers on timing."""
FORM_UNCERTAINTY = 0.06
"""The same of the whole: what a framework holds that no term counts. With it nine in ten of all published peaks lie
inside the interval (benchmarks/planner_accuracy.py, those that took no part in fitting included)."""
RESERVED_UNCERTAINTY = 0.03


@dataclass(frozen=True)
class Phase:
    name: str
    terms: Mapping[str, float]
    """GiB by term; all of `TERMS`."""

    @property
    def total(self) -> float:
        return sum(self.terms.values())


class Moment(NamedTuple):
    """One instant, bytes by term."""

    phase: str
    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float
    runtime: float
    idle: float = 0.0
    """What the allocator holds in pools that this instant cannot draw from; no tensor."""

    @property
    def terms(self) -> tuple[float, ...]:
        """In the order of `TERMS`."""
        return (*self[1:8],)

    @property
    def total(self) -> float:
        return sum(self.terms)


@dataclass(frozen=True)
class Memory:
    """All in GiB. The terms of the peak phase add up to `peak_allocated`."""

    largest: tuple[Moment, ...]
    """The largest moment of each phase, in order, in bytes."""
    peak_phase: str
    peak_allocated: float
    peak_reserved: float
    peak_smi: float
    peak_low: float
    peak_high: float
    host_memory_gib: float
    """Per node."""

    @property
    def peak(self) -> float:
        return self.peak_smi

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        return tuple(Phase(one.phase, _gib_terms(one)) for one in self.largest)

    @property
    def terms(self) -> Mapping[str, float]:
        """Of the peak phase."""
        return next(phase.terms for phase in self.phases if phase.name == self.peak_phase)


def scaled(memory: Memory, ratio: float) -> Memory:
    """As this machine's runs measured it: all that torch holds times `ratio`; what lies outside torch as before."""
    outside = memory.peak_smi - memory.peak_reserved
    return replace(
        memory,
        largest=tuple(Moment(one.phase, *(ratio * size for size in one[1:])) for one in memory.largest),
        peak_allocated=ratio * memory.peak_allocated, peak_reserved=ratio * memory.peak_reserved,
        peak_smi=ratio * memory.peak_reserved + outside,
        peak_low=ratio * memory.peak_low, peak_high=ratio * memory.peak_high,
    )  # fmt: skip


def estimate_memory(setup: Setup) -> Memory:
    """The timeline of one optimizer step (and of loading, evaluating and saving) on one rank."""
    every, largest = moments(setup), dict[str, Moment]()
    for moment in every:
        if moment.phase not in largest or moment.total > largest[moment.phase].total:
            largest[moment.phase] = moment
    peak = max(largest.values(), key=lambda moment: moment.total)
    allocated = peak.total / GIB
    reserved = reserved_gib(setup, allocated, max(moment.total + moment.idle for moment in every) / GIB)
    smi = reserved + outside_torch_gib(setup.profile)
    spread = _spread_gib(setup, peak, reserved)
    return Memory(
        largest=tuple(largest.values()),
        peak_phase=peak.phase,
        peak_allocated=allocated,
        peak_reserved=reserved,
        peak_smi=smi,
        peak_low=max(0.0, smi - spread),
        peak_high=smi + spread,
        host_memory_gib=host_memory_gib(setup, allocated),
    )


def _gib_terms(moment: Moment) -> dict[str, float]:
    return {name: size / GIB for name, size in zip(TERMS, moment.terms, strict=True)}


def reserved_gib(setup: Setup, allocated: float, held: float) -> float:
    """What the allocator holds, of `held` with idle pools. When the card runs full it gives cached blocks back before
    it gives up."""
    least = allocated * min(fragmentation(setup), EXPANDABLE_FRAGMENTATION)
    room = setup.profile.gpu.memory_gib - outside_torch_gib(setup.profile)
    return min(held * fragmentation(setup), max(least, room))


def outside_torch_gib(profile: Profile) -> float:
    """CUDA context and NCCL: seen by nvidia-smi, not by torch."""
    if profile.is_cpu:
        return 0.0
    between = NETWORK_GIB if profile.nodes > 1 else 0.0
    return CUDA_CONTEXT_GIB + (NCCL_GIB + between if profile.gpus > 1 else 0.0)


def _spread_gib(setup: Setup, peak: Moment, reserved_gib: float) -> float:
    """Half the width of the interval: nine in ten of a normal spread of independent terms."""
    variance = sum((UNCERTAINTY[name] * size / GIB) ** 2 for name, size in zip(TERMS, peak.terms, strict=True))
    if not setup.profile.is_cpu:
        of_all = math.hypot(FORM_UNCERTAINTY, RESERVED_UNCERTAINTY) * reserved_gib
        variance += of_all**2 + (UNCERTAINTY["runtime"] * outside_torch_gib(setup.profile)) ** 2
    return 1.64 * math.sqrt(variance)


# --- the timeline -------------------------------------------------------------------------------------------------


def moments(setup: Setup) -> list[Moment]:
    """Every instant that can be the peak."""
    states, blocks, loss = States(setup), Blocks.of(setup), loss_bytes(setup)
    weights, optimizer, runtime = states.weights, states.optimizer, runtime_bytes(setup)
    before, after = states.gradients_before, states.gradients
    head = before + states.head_gradients if setup.shards_gradients else max(before, states.head_gradients)
    end = after + (states.head_gradients if setup.shards_gradients else 0.0)
    buffers = states.gathered + states.autocast_copies(forward=False)
    standing = states.gathered + states.autocast_copies(forward=True) + states.standing_buffers
    backward = buffers + states.reduce_buffers
    beside_loss = idle_blocks(setup, blocks.forward)

    def at(phase: str, gradients: float, activations: float, logits: float, extra: float, idle: float = 0.0) -> Moment:
        idle += idle_gradients(setup, states, gradients)
        return Moment(phase, weights, gradients, optimizer, activations, logits, extra, runtime, idle)

    found = [
        at("load", 0.0, 0.0, 0.0, 0.0),
        at("forward", before, blocks.kept + blocks.forward, 0.0, standing),
        at("forward", before, blocks.kept + blocks.hidden, loss.forward, standing, beside_loss),
        at("backward", before, blocks.kept, loss.backward, buffers + states.reduce_beside_loss, beside_loss),
        at("backward", head, blocks.kept + blocks.last_norm, 0.0, backward),
        at("backward", head, blocks.kept + blocks.recomputed, 0.0, backward),
        at("backward", end, blocks.last, 0.0, backward),
        at("backward", after, 0.0, 0.0, states.reduce_after_backward),
        at("optimizer step", after, 0.0, 0.0, states.step_extra),
    ]
    if setup.eval_micro_batch_size:
        found.append(at("evaluation", 0.0, blocks.evaluation, loss.evaluation, standing))
    found.append(at("save", 0.0, 0.0, 0.0, states.save_extra))
    return found


@dataclass(frozen=True)
class Blocks:
    """Activations of a micro-batch, bytes. All but `kept` and `last` come on top of `kept`."""

    kept: float
    """From forward to backward: all blocks, the last norm and the rotary tables."""
    forward: float
    """While the last block's forward runs."""
    hidden: float
    """The last norm's output, alive until the loss is computed."""
    last_norm: float
    """While the last norm's backward runs."""
    recomputed: float
    """While the last block's backward runs; the last norm's tensors are gone."""
    last: float
    """All there is when the first block's backward runs, the last one in time."""
    evaluation: float

    @classmethod
    def of(cls, setup: Setup) -> Blocks:
        key, tokens, hidden = ActivationKey.of(setup), setup.micro_batch_tokens, setup.facts.hidden_size
        stream = hidden / setup.stream_ways
        recomputes = setup.checkpointing != "none"
        kinds = [(layer_bytes(key, layer), count) for layer, count in setup.facts.layers]
        alive = ActivationKey.of(replace(setup, compiled=False)) if recomputes and setup.compiled else key
        biggest = max(
            (layer_bytes(alive, layer) for layer, _ in setup.facts.layers),
            key=lambda one: one.saved + one.working,
            default=NO_LAYER,
        )
        last_norm = stream * norm_saved(key)
        mask = mask_kept(key)
        rotary = rotary_tables(setup.facts) * 2 * key.width * setup.facts.head_dim
        # a compiled block holds as much as an eager one while it is recomputed and differentiated (prime-rl's rows)
        inside = biggest.saved - biggest.shared if recomputes else 0.0
        inside -= biggest.reused if setup.checkpointing == "selective" else 0.0
        inside += _fetched(setup, biggest)
        sums = max((tile_sums(alive, layer) for layer, _ in setup.facts.layers), default=0.0)
        return cls(
            kept=tokens * (sum(_kept_by(setup, one) * count for one, count in kinds) + last_norm + rotary + mask),
            forward=tokens * max(0.0, biggest.forward + _fetched(setup, biggest) - last_norm) if recomputes else 0.0,
            hidden=tokens * hidden * key.width,
            last_norm=tokens * stream * norm_working(key),
            recomputed=tokens * (inside + biggest.working - last_norm) + sums,
            last=tokens * (biggest.saved + biggest.input - biggest.shared + biggest.working + rotary) + sums,
            evaluation=evaluation_positions(setup) * (biggest.forward + biggest.input),
        )


def _kept_by(setup: Setup, layer: LayerBytes) -> float:
    """Bytes per token a block keeps on the card under the setup's checkpointing. A CPU's own memory is the host's."""
    offloaded = layer.input if setup.profile.is_cpu else 0.0
    ways = {"none": layer.saved, "full": layer.input, "selective": layer.selective, "offload": offloaded}
    return ways[setup.checkpointing]


def _fetched(setup: Setup, layer: LayerBytes) -> float:
    """The input of the block that computes just now, where inputs wait in host memory."""
    return layer.input if setup.checkpointing == "offload" and not setup.profile.is_cpu else 0.0


def runtime_bytes(setup: Setup) -> float:
    """Library workspaces inside torch's allocator and the batch itself (ids, labels, positions: 8 bytes each)."""
    batch = 3 * 8 * setup.micro_batch_tokens
    if setup.profile.is_cpu:
        return batch
    capability = setup.profile.gpu.compute_capability
    hopper = capability is not None and capability >= (9, 0)
    return batch + (HOPPER_WORKSPACE_BYTES if hopper else CUBLAS_WORKSPACE_BYTES)


# --- the host -----------------------------------------------------------------------------------------------------


def host_memory_gib(setup: Setup, allocated_gib: float) -> float:
    """Per node: the processes, what is offloaded, and the copy of the states that is saved beside training.

    The saver takes that copy only where there is room for it, and else lets the step wait for the disk
    (dtrain/train/saver.py), so it never decides whether a layout fits.
    """
    per_rank = HOST_BASE_GIB + (allocated_gib if setup.profile.is_cpu else 0.0)
    per_rank += offloaded_bytes(setup) / GIB
    needed, there_is = setup.profile.gpus_per_node * per_rank, setup.profile.host_memory_gib
    copied = 0.0 if setup.others_loss else checkpoint_bytes(setup) / setup.profile.nodes / GIB
    room = min(SAVED_COPY_SHARE * (there_is - needed), (1 - HOST_HEADROOM) * there_is - needed)
    return needed + (copied if copied < room else 0.0)


def offloaded_bytes(setup: Setup) -> float:
    """What one rank holds in host memory instead of on its card."""
    states = States(setup)
    held = 0.0
    if setup.offload_optimizer == "cpu":
        held += states.optimizer_anywhere + 4 * states.trained / states.ranks  # and fp32 gradients beside the masters
    if setup.optimizer.paged:
        held += states.trained * states.moment_bytes / (states.ranks if setup.shards_optimizer else 1)
    if setup.offload_params == "cpu":
        held += states.whole_elements * DTYPE_BYTES[setup.dtypes.compute] / states.ranks
    if "nvme" in (setup.offload_optimizer, setup.offload_params):
        held += nvme.buffer_bytes(setup)
    if setup.checkpointing == "offload" and not setup.profile.is_cpu:
        stream = DTYPE_BYTES[setup.dtypes.compute] * setup.facts.hidden_size
        held += stream * setup.facts.layer_count * setup.micro_batch_tokens
    return held
