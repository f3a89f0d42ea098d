"""A Profile from a card and counts: the usual machine around it, the links that count, the limits of sense."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dtrain.errors import BadInput
from dtrain.hardware.gpus import Gpu
from dtrain.hardware.machines import usual_surroundings
from dtrain.hardware.this_machine import cpu_card, host_memory_gib

MOST_PER_NODE = 72
"""GPUs that one NVLink domain joins today (GB200 NVL72); no node has more."""
MOST_NODES = 4096
MOST_CPU_RANKS = 256
CPU_RANKS = 2
"""Of the bare `cpu`: enough to show every collective, few enough for a laptop."""
CPU_NETWORK_GBIT_PER_S = 1.0
"""Between nodes of a CPU profile, which are a test of the road: plain gigabit Ethernet."""

GRAMMAR = "gpu[-NNgb]xGPUS_PER_NODE[xNODES], cpu[xRANKS[xNODES]], auto, or the path of a YAML file"


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
    surroundings_source: str = ""
    """Where host memory and network come from."""
    said: str = ""
    """What a command line names it by, where that is not its name: the path of the user's own file."""

    @property
    def gpus(self) -> int:
        """The total over all nodes: ranks of a run."""
        return self.gpus_per_node * self.nodes

    @property
    def is_cpu(self) -> bool:
        return self.gpu.name == "cpu"


def malformed(said: str, message: str) -> BadInput:
    return BadInput(
        message, key="--profile", value=said, allowed=GRAMMAR, fix="for example --profile a100x8, h100x8x4 or cpux4"
    )


def check_counts(said: str, per_node: int, nodes: int, most_per_node: int) -> None:
    if not 1 <= per_node <= most_per_node:
        raise malformed(said, f"{per_node} per node: a node has 1 to {most_per_node}")
    if not 1 <= nodes <= MOST_NODES:
        raise malformed(said, f"{nodes} nodes: a run takes 1 to {MOST_NODES}")


def gpu_profile(gpu: Gpu, per_node: int, nodes: int = 1, *, name: str, said: str) -> Profile:
    """A card of the catalogue in its usual machine."""
    check_counts(said, per_node, nodes, MOST_PER_NODE)
    around = usual_surroundings(gpu.name, per_node)
    gpu, link_notes = linked(gpu, per_node)
    support = (gpu.note,) if gpu.note else ()
    return Profile(
        name=name,
        gpu=gpu,
        gpus_per_node=per_node,
        nodes=nodes,
        host_memory_gib=around.host_memory_gib,
        network_gbit_per_s=around.network_gbit_per_s,
        notes=(*support, *link_notes),
        surroundings_source=around.source,
    )


def linked(gpu: Gpu, per_node: int) -> tuple[Gpu, tuple[str, ...]]:
    """A bridge joins two cards; among more, the slowest hop is PCIe and that is what counts."""
    if not gpu.bridged_pairs or per_node == 1:
        return gpu, ()
    if per_node == 2:
        return gpu, (f"2 × {gpu.title}: the NVLink bridge between them is assumed; without it they talk over PCIe",)
    sources = {**gpu.sources, "gpu_link_gb_per_s": "bridges join pairs only: over PCIe"}
    note = f"{per_node} × {gpu.title}: NVLink bridges join only pairs, so the plan counts with PCIe between GPUs"
    return replace(gpu, gpu_link_gb_per_s=0.0, sources=sources), (note,)


def cpu_profile(name: str, ranks: int, nodes: int = 1, *, said: str) -> Profile:
    """`ranks` processes on each of `nodes` machines like this one."""
    check_counts(said, ranks, nodes, MOST_CPU_RANKS)
    return Profile(
        name=name,
        gpu=cpu_card(ranks),
        gpus_per_node=ranks,
        nodes=nodes,
        host_memory_gib=host_memory_gib(),
        network_gbit_per_s=CPU_NETWORK_GBIT_PER_S,
        notes=("CPU speed is an estimate from one server's cores; memory is this machine's",),
        surroundings_source="this machine; network: plain gigabit Ethernet assumed",
    )


def refuse_if_too_old(gpu: Gpu, said: str) -> None:
    if gpu.support == "refused":
        raise BadInput(
            f"{gpu.title} is not supported: {gpu.note}", key="--profile", value=said, fix="--profile t4x1, or cpu"
        )
