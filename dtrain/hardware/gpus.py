"""The catalogue of GPUs. Each figure has a source; `Gpu` says what the figures mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """One card. Rates are dense, links one direction per GPU, memory is what torch reports as total."""

    name: str
    """The catalogue's name: `a100-80gb`, `4090`."""
    title: str
    """As people say it: `NVIDIA A100 80 GB SXM`."""
    memory_gib: float
    tflops: Mapping[str, float | None] = field(hash=False)
    """Datasheet dense peak by precision: bf16, fp16, tf32, fp32, fp8; None or absent: the card does not have it."""
    measured_tflops_bf16: float | None
    """Best measured matmul (16-bit: fp16 where there is no bf16)."""
    memory_gb_per_s: float
    gpu_link_gb_per_s: float
    """GPU to GPU in one node (NVLink, xGMI); 0: over PCIe."""
    pcie_gb_per_s: float
    compute_capability: tuple[int, int] | None
    """CUDA's; None where it is no NVIDIA card."""
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Figure → where it comes from."""
    support: str = "full"
    """`full`, `planned` (plan only, launch refuses) or `refused` with the reason in `note`."""
    note: str = ""
    bridged_pairs: bool = False
    """The link is a bridge between two cards, not a fabric of the whole node."""
    nominal_gb: int | None = None
    """The memory in the card's name, in the seller's gigabytes; what `-80gb` in a profile means."""
    aliases: tuple[str, ...] = ()
    """Other names in profiles: `a100` for `a100-80gb`."""
    reported_as: tuple[str, ...] = ()
    """What nvidia-smi calls it."""
    like: str = ""
    """Of a card in a person's own file: the catalogue's card that fills its gaps."""

    @property
    def has_bf16(self) -> bool:
        return bool(self.tflops.get("bf16"))


def _gpu(name: str, figures: Mapping[str, Any]) -> Gpu:
    capability = figures["compute_capability"]
    told = {
        **figures,
        "compute_capability": (capability[0], capability[1]) if capability else None,
        "aliases": tuple(figures["aliases"]),
        "reported_as": tuple(figures["reported_as"]),
    }
    return Gpu(name=name, **told)


def _catalogue() -> Mapping[str, Gpu]:
    document = json.loads(Path(__file__).with_name("gpus.json").read_text(encoding="utf-8"))
    return {name: _gpu(name, figures) for name, figures in document.items()}


GPUS: Mapping[str, Gpu] = _catalogue()
"""Catalogue name → card, refused ones included. The pseudo-card `cpu` is made by this_machine.py."""


def names_of(gpu: Gpu) -> tuple[str, ...]:
    """Every way to say a card in a profile: its name and aliases, each also with its memory (`h100-80gb`)."""
    plain = (gpu.name, *gpu.aliases)
    return plain + tuple(f"{name}-{gpu.nominal_gb}gb" for name in plain if not name.endswith("gb"))


def shortest(gpu: Gpu) -> str:
    """The name to say: `a100` rather than `a100-80gb`."""
    return min((gpu.name, *gpu.aliases), key=len)


BY_NAME: Mapping[str, Gpu] = {name: gpu for gpu in GPUS.values() for name in names_of(gpu)}
BY_REPORTED_NAME: Mapping[str, Gpu] = {name.lower(): gpu for gpu in GPUS.values() for name in gpu.reported_as}
