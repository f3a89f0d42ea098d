"""Seconds of collectives over the links of a profile: NVLink or PCIe in a node, the network between nodes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from dtrain.hardware.profiles import Profile

LINK_SHARE = 0.78
"""NCCL's bus bandwidth over the link's rate in one node: 235 of 300 GB/s (A100), 360 of 450 (H100), nccl-tests."""
NETWORK_SHARE = 0.80
"""The same between nodes: 92 of 100 GB/s at 1 GiB (ml-engineering, network benchmarks), less at a block's size."""
PCIE_SHARE = 0.55
"""Peers without NVLink go through the host bridge; 10 to 14 of 25 GB/s on 3090 and 4090 machines (recalled)."""
HOP_SECONDS = 3e-6
"""A ring waits this long at each rank: 1.1 ms more per collective from 128 to 512 GPUs (fitted)."""
BASE_SECONDS = 30e-6
"""Launch and handshake of one collective."""


@dataclass(frozen=True)
class Link:
    """Bandwidth of a ring over some ranks, in bytes/s per rank, and its latency in seconds."""

    bandwidth: float
    latency: float
    ranks: int

    def gather(self, total_bytes: float, calls: float = 1.0) -> float:
        """All-gather or reduce-scatter of `total_bytes` (all shards together), in `calls` pieces."""
        if self.ranks <= 1 or total_bytes <= 0:
            return 0.0
        return total_bytes * (self.ranks - 1) / self.ranks / self.bandwidth + calls * self.latency

    def reduce(self, total_bytes: float, calls: float = 1.0) -> float:
        """All-reduce: a reduce-scatter and an all-gather."""
        return 2 * self.gather(total_bytes, calls)


@lru_cache(maxsize=1024)
def link_over(profile: Profile, ranks: int, whole_nodes_first: bool = True) -> Link:
    """The ring over `ranks` neighbours; a ring of several nodes is as fast as the slower of node and network.

    `whole_nodes_first` False: one rank of each node (replicas of a sharded model), which share the node's network.
    """
    inside = _node_bandwidth(profile)
    latency = BASE_SECONDS + HOP_SECONDS * max(0, ranks - 1)
    network = NETWORK_SHARE * profile.network_gbit_per_s * 1e9 / 8
    if whole_nodes_first:
        crosses = ranks > profile.gpus_per_node
        return Link(min(inside, network) if crosses else inside, latency, ranks)
    return Link(min(inside, network / profile.gpus_per_node), latency, ranks)


def _node_bandwidth(profile: Profile) -> float:
    gpu = profile.gpu
    if profile.is_cpu:  # the pseudo-card's link is gloo's measured rate already
        return 1e9 * gpu.gpu_link_gb_per_s
    if gpu.gpu_link_gb_per_s:
        return LINK_SHARE * 1e9 * gpu.gpu_link_gb_per_s
    return PCIE_SHARE * 1e9 * gpu.pcie_gb_per_s
