"""Which machine types are enough for a node, and what the dated table says they cost. Zones come from the API."""

from __future__ import annotations

from dtrain.cloud.listed import listed_cards, listed_offers
from dtrain.cloud.provider import Need, NoSuchMachine, Offer

from .gcp_options import NAME

PRICED_REGION = "us-central1"
"""Whose prices the table holds; offered first."""
ONLY_SPOT = {"a3-highgpu-1g", "a3-highgpu-2g", "a3-highgpu-4g"}
"""Sold as spot or flex-start only (Compute Engine, accelerator-optimized machines)."""
CPU_MACHINE, CPU_USD_PER_HOUR = "e2-standard-4", 0.134
"""Four cores, 16 GB; third-party code tables for us-central1, undated, that agree."""


def machines(need: Need) -> list[Offer]:
    """Offers without a place, the cheapest first. The prices are those of PRICED_REGION."""
    if need.gpu == "cpu":
        return [_cpu(need)]
    listed = listed_offers(NAME, need, not_these=() if need.spot else ONLY_SPOT)
    if not listed:
        raise NoSuchMachine(
            f"Google has no machine with {need.gpus} × {need.gpu}; the table has {', '.join(listed_cards(NAME))}",
            key="--on gcp", fix="another profile, or another provider",
        )  # fmt: skip
    return listed


def _cpu(need: Need) -> Offer:
    return Offer(
        NAME, "", CPU_MACHINE, "cpu", 0, CPU_USD_PER_HOUR, spot=need.spot, priced_on="undated",
        price_source="third-party code tables for us-central1",
    )  # fmt: skip
