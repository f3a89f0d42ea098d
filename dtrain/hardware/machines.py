"""Usual machines: how much host RAM and network comes with so many cards of a kind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    gpu: str
    """Catalogue name."""
    gpus: int
    machine: str
    """As its provider calls it."""
    host_memory_gib: float
    network_gbit_per_s: float
    """Of the whole machine, one direction."""
    source: str


@cache
def machines() -> tuple[Machine, ...]:
    document = json.loads(Path(__file__).with_name("machines.json").read_text(encoding="utf-8"))
    return tuple(Machine(**figures) for figures in document)


def largest_usual(gpu: str) -> int:
    """Cards in the largest usual machine with this card."""
    return max(one.gpus for one in machines() if one.gpu == gpu)


@dataclass(frozen=True)
class Surroundings:
    """The host around the cards of one node."""

    host_memory_gib: float
    network_gbit_per_s: float
    source: str


def usual_surroundings(gpu: str, gpus: int) -> Surroundings:
    """Of the usual machine with so many cards; else a share of the next larger one, or a multiple of the largest."""
    known = sorted((one for one in machines() if one.gpu == gpu), key=lambda one: one.gpus)
    nearest = next((one for one in known if one.gpus >= gpus), known[-1])
    if nearest.gpus == gpus:
        return Surroundings(nearest.host_memory_gib, nearest.network_gbit_per_s, f"{nearest.machine}: {nearest.source}")
    return Surroundings(
        host_memory_gib=nearest.host_memory_gib * gpus / nearest.gpus,
        network_gbit_per_s=nearest.network_gbit_per_s * min(1.0, gpus / nearest.gpus),
        source=f"{gpus}/{nearest.gpus} of {nearest.machine}: {nearest.source}",
    )
