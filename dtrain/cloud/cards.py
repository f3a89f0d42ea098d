"""A catalogue name as the driver and the providers say it."""

from __future__ import annotations

from dtrain.hardware.gpus import GPUS
from dtrain.hardware.prices import Price, prices


def reported_names(gpu: str) -> tuple[str, ...]:
    """What nvidia-smi calls the card; empty where the catalogue does not know it (`cpu`, a person's own card)."""
    return GPUS[gpu].reported_as if gpu in GPUS else ()


def nominal_gb(gpu: str) -> int:
    """The memory in the card's name; 0 where it is not known."""
    return (GPUS[gpu].nominal_gb or 0) if gpu in GPUS else 0


def paid_row(provider: str, gpu: str) -> Price | None:
    """What the price table says of one card there, the cheapest that costs something."""
    rows = [row for row in prices() if (row.provider, row.gpu, row.gpus) == (provider, gpu, 1) and row.usd_per_hour]
    return min(rows, key=lambda row: row.usd_per_hour, default=None)


def cards() -> tuple[str, ...]:
    """Every card that dtrain trains on."""
    return tuple(name for name, gpu in GPUS.items() if gpu.support == "full")
