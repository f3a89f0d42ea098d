"""Who may reach a machine at Lambda: a ruleset of the run's own beside it, and a rule of the machine itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dtrain.cloud.provider import Order

RULESETS = "/api/v1/firewall-rulesets"
RULESET_ID = "FIREWALL_RULESET"
"""Stands in a dry run for the number that Lambda gives it."""
NOT_IN = ("us-south-1",)
"""Lambda's firewall does not reach there (its API description)."""


def is_had(order: Order) -> bool:
    """Lambda's rules know IPv4 only."""
    return order.offer.region not in NOT_IN and ":" not in order.client_address


def ruleset_name(run_id: str, region: str) -> str:
    """A ruleset is of one region. At most 64 letters."""
    return f"dtrain-{run_id}-{region}"


def is_of(ruleset: Mapping[str, Any], run_id: str) -> bool:
    """A ruleset as Lambda lists it."""
    return bool(ruleset["name"] == ruleset_name(run_id, ruleset["region"]["name"]))


def ruleset(order: Order) -> dict[str, Any]:
    """SSH from the client, and nothing else."""
    ssh = {
        "protocol": "tcp", "port_range": [22, 22], "source_network": order.client_address,
        "description": "dtrain: SSH from the client only",
    }  # fmt: skip
    name = ruleset_name(order.run_id, order.offer.region)
    return {"name": name, "region": order.offer.region, "rules": [ssh]}


def behind(launch: Mapping[str, Any], number: str) -> dict[str, Any]:
    """The launch of a machine that the ruleset guards."""
    return {**launch, "firewall_rulesets": [{"id": number}]}


def closed_to_others(script: str, address: str) -> str:
    """SSH for one address only, by the machine itself: the account's global rules let in whom they let in, whatever a
    ruleset says, and in us-south-1 there are none."""
    rule = f"iptables -I INPUT -p tcp --dport 22 ! -s {address} -j DROP || echo 'dtrain: SSH is open to all' >&2"
    head, _, rest = script.partition("\n")
    return f"{head}\n{rule}\n{rest}" if head.startswith("#!") else f"#!/bin/sh\n{rule}\n{script}"
