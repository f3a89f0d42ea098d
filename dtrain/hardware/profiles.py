"""A machine by name: `a100x8`, `a100-40gbx8`, `h100x8x4`, `4090x1`, `cpu`, `auto`, or the user's own YAML."""

from __future__ import annotations

from dataclasses import dataclass

from dtrain.hardware.gpus import Gpu


@dataclass(frozen=True)
class Profile:
    """GPUs, how they are joined, and the host around them."""

    name: str
    gpu: Gpu
    """On a CPU profile: the pseudo-card `cpu`, one per rank."""
    gpus_per_node: int
    nodes: int
    host_memory_gib: float
    """Per node."""
    network_gbit_per_s: float
    """Between nodes, per node, one direction."""
    usd_per_hour: float | None = None
    """Of the whole profile, where the user's own file says so."""
    notes: tuple[str, ...] = ()
    """What was assumed or taken from the catalogue."""

    @property
    def gpus(self) -> int:
        """The total over all nodes: ranks of a run."""
        return self.gpus_per_node * self.nodes

    @property
    def is_cpu(self) -> bool:
        return self.gpu.name == "cpu"
