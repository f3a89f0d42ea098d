"""What is said to Vast: a search for offers, an order for one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dtrain.cloud.cards import nominal_gb
from dtrain.cloud.provider import Need, Order

from .container import IMAGE, boot_command, shutdown_program
from .vast_options import API, VastOptions

SEARCH = "/api/v0/bundles/"
INSTANCES = "/api/v1/instances/"
PAGE = 25
"""As Vast's own client asks for them."""
OFFERS = 20
CARDS: Mapping[str, str] = {
    "b200": "B200", "h200": "H200", "gh200": "GH200 SXM", "h100": "H100 SXM", "h100-pcie": "H100 PCIE",
    "a100-80gb": "A100 SXM4", "a100-40gb": "A100 SXM4", "a100-pcie": "A100 PCIE", "l40s": "L40S", "a6000": "RTX A6000",
    "5090": "RTX 5090", "4090": "RTX 4090", "3090": "RTX 3090", "v100-32gb": "Tesla V100", "v100-16gb": "Tesla V100",
    "t4": "Tesla T4",
}  # fmt: skip
"""Catalogue name → Vast's, as in vastai 1.9.1, data/query.py. Memory tells those of one name apart."""
SAME_MEMORY = (0.85, 1.15)
"""Vast tells a card's memory in MB as the driver does, which is not the round number of its name."""


def search_body(need: Need, options: VastOptions) -> dict[str, Any]:
    low, high = (share * 1024 * nominal_gb(need.gpu) for share in SAME_MEMORY)
    query: dict[str, Any] = {
        "gpu_name": {"eq": CARDS[need.gpu]},
        "num_gpus": {"eq": need.gpus},
        "gpu_ram": {"gte": round(low), "lte": round(high)},
        "disk_space": {"gte": need.disk_gib},
        "direct_port_count": {"gte": 1},
        "reliability": {"gte": options.min_reliability},
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "external": {"eq": False},
        "allocated_storage": need.disk_gib,
        "order": [["dph_total", "asc"]],
        "type": "bid" if need.spot else "on-demand",
        "limit": OFFERS,
    }
    if options.verified:
        query["verified"] = {"eq": True}
    if need.regions:
        query["geolocation"] = {"in": list(need.regions)}
    return query


def ask_path(order: Order) -> str:
    """A person may name an offer by its number, too: `launchers.vast.machine`."""
    return f"/api/v0/asks/{order.offer.data.get('ask_id', order.offer.machine)}/"


def instance_path(instance_id: str) -> str:
    return f"/api/v0/instances/{instance_id}/"


def create_body(order: Order) -> dict[str, Any]:
    body = {
        "client_id": "me",
        "image": order.image or IMAGE,
        "disk": order.disk_gib,
        "label": order.name,
        "runtype": "ssh_direc ssh_proxy",
        "env": {"DTRAIN_RUN": order.run_id},
        "onstart": boot_command(order, _shutdown()),
        "cancel_unavail": True,  # else a bid that is too low leaves a stopped machine, whose disk costs
    }
    return body | ({"price": order.offer.usd_per_hour} if order.offer.spot else {})


def _shutdown() -> str:
    return shutdown_program(
        method="DELETE",
        url=f"f\"{API.endpoint()}/api/v0/instances/{{seen['CONTAINER_ID']}}/\"",
        body="{}",
        key="CONTAINER_API_KEY",
    )
