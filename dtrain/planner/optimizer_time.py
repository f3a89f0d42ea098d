"""Seconds of the optimizer's step: memory traffic on the card, or the host, its cores and the way there and back."""

from __future__ import annotations

from dtrain.planner.efficiency import rates_of
from dtrain.planner.kernels import compute_dtype
from dtrain.planner.setup import DTYPE_BYTES, Setup

FOREACH_PASSES = 80 / 28
"""An unfused AdamW reads and writes 80 bytes a parameter in eight kernels, a fused one 28 (torch/optim/adamw.py)."""
NEWTON_SCHULZ_FLOPS = 30
"""Per parameter and hidden channel: five iterations of three products on nearly square matrices (Muon, Jordan 2024)."""
CLIP_PASSES = 3
"""The norm reads all gradients, the scaling reads and writes them."""
CPU_ADAM_BYTES_PER_S = 112e9
"""DeepSpeedCPUAdam on a two-socket node: 2.6 s for 10 billion parameters of 28 bytes each, read or written
(ZeRO-Offload, arXiv 2101.06840, table 4); it waits for memory, so states of fewer bytes take less."""
PINNED_SHARE = 0.8
"""Of PCIe's rate that copies from and to pinned memory reach: 25 of 31 GB/s on an A100 (CUDA's bandwidthTest)."""
HOST_MEMORY_BYTES_PER_S = 200e9
"""That all GPUs of a node together draw from a two-socket host (DDR4-3200, eight channels each, half of its peak)."""
NVME_BYTES_PER_S = 5.0e9
"""Of one node's drives, reading or writing (ZeRO-Infinity, arXiv 2104.07857, measured 3 to 6 GB/s a drive pair)."""


def _memory_rate(setup: Setup) -> float:
    return rates_of(setup.profile.gpu, compute_dtype(setup)).memory


def stepped_parameters(setup: Setup) -> float:
    """Parameters this rank's optimizer steps."""
    share = setup.shard_ranks if setup.shards_optimizer else 1
    return setup.trained_parameters * setup.tensor_share / share


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
    return (clip + copied + step) * parameters / _memory_rate(setup) + _orthogonalise_seconds(setup, parameters)


def _orthogonalise_seconds(setup: Setup, parameters: float) -> float:
    """Muon's Newton-Schulz iteration."""
    if setup.optimizer.name != "muon":
        return 0.0
    flops = NEWTON_SCHULZ_FLOPS * setup.facts.hidden_size * parameters
    return flops / rates_of(setup.profile.gpu, setup.dtypes.compute).matmul


def accumulate_seconds(setup: Setup) -> float:
    """Adding a micro-batch's gradients to the sum: read both, write one (only once is a plain write)."""
    dtypes = setup.dtypes
    summed = DTYPE_BYTES[dtypes.accumulation or dtypes.gradient]
    share = setup.shard_ranks if setup.shards_gradients else 1
    once = DTYPE_BYTES[dtypes.gradient] + summed * (2 if setup.accumulation > 1 else 1)
    return once * setup.trained_parameters * setup.tensor_share / share / _memory_rate(setup)


# --- on the host --------------------------------------------------------------------------------------------------


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
    stepped = DTYPE_BYTES[dtypes.master or dtypes.weights]
    step = node * (2 * stepped + 2 * setup.optimizer.state_bytes + 4) / CPU_ADAM_BYTES_PER_S
    drives = 0.0
    if setup.offload_optimizer == "nvme":
        drives = 2 * (setup.optimizer.state_bytes + 4 + 4) * node / NVME_BYTES_PER_S  # and gradients
    return link + max(step, drives)
