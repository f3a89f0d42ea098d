"""What Vast answers: offers, instances, and its errors as what a person must do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dtrain.cloud.provider import (
    AccountClosed,
    Instance,
    InstanceState,
    Need,
    NoCapacity,
    NoCredentials,
    NoRights,
    Offer,
    OutcomeUnknown,
    ProviderError,
    QuotaReached,
)

from .container import named
from .vast_options import API, CONSOLE, NAME

MOST_CARDS = 8
"""In one machine, as hosts build them."""
GONE = ("no_such_instance", "no such instance", "not found")
_CODES: Mapping[str, type[ProviderError]] = {
    "no_such_ask": NoCapacity, "not_available": NoCapacity, "bid_too_low": NoCapacity,
    "insufficient_credit": AccountClosed, "account_suspended": AccountClosed,
    "auth_error": NoCredentials, "invalid_api_key": NoCredentials, "permission_denied": NoRights,
    "instance_limit": QuotaReached,
}  # fmt: skip
_WORDS: tuple[tuple[str, type[ProviderError]], ...] = (
    ("no longer available", NoCapacity), ("is not available", NoCapacity), ("bid", NoCapacity),
    ("credit", AccountClosed), ("balance", AccountClosed), ("suspended", AccountClosed), ("permission", NoRights),
)  # fmt: skip
"""Where the code says nothing known: what the words hold. The first that fits counts."""
_BY_STATUS: Mapping[int, type[ProviderError]] = {401: NoCredentials, 403: NoRights, 410: NoCapacity}


def refusal(status: int, told: Mapping[str, Any]) -> ProviderError | None:
    """What an answer refuses; None where it does not. `success: false` comes with any status."""
    if status < 400 and told.get("success") is not False:
        return None
    code, words = str(told.get("error") or ""), str(told.get("msg") or told.get("message") or "")
    said = ": ".join(part for part in (code, words) if part) or f"{status} {dict(told)}"
    by_words = next((kind for one, kind in _WORDS if one in words.lower()), None)
    return API.error(_CODES.get(code) or _BY_STATUS.get(status) or by_words or ProviderError, said)


def is_gone(refused: ProviderError) -> bool:
    return any(words in refused.message.lower() for words in GONE)


def offer_of(ask: Mapping[str, Any], need: Need) -> Offer:
    price = ask["min_bid"] if need.spot else ask["dph_total"]
    return Offer(
        NAME, country(ask), _machine(ask), need.gpu, need.gpus,
        round(float(price), 4), spot=need.spot, zone=_host(ask), priced_on="live", price_source="Vast's API",
        capacity=True, data={"ask_id": ask["id"], "machine_id": ask.get("machine_id")},
    )  # fmt: skip


def country(row: Mapping[str, Any]) -> str:
    """`SE` of `Sweden, SE`: what stands for a region here."""
    return str(row.get("geolocation") or "").rpartition(",")[2].strip()


def _machine(row: Mapping[str, Any]) -> str:
    return f"{row['num_gpus']}x {row['gpu_name']}"


def _host(row: Mapping[str, Any]) -> str:
    """What stands for a zone: another host of the same country may have what this one has not."""
    return f"host {row['machine_id']}"


def median_of(offers: Sequence[Offer]) -> Offer:
    """One row of the price table for all of them: what the middle one costs."""
    ordered = sorted(offers, key=lambda offer: offer.usd_per_hour)
    middle = ordered[len(ordered) // 2]
    data = {"kind": "marketplace", "up_to": MOST_CARDS}
    return replace(middle, machine=f"{middle.gpu}, median of {len(ordered)} offers", region="", zone="", data=data)


def created_id(told: Mapping[str, Any]) -> str:
    """OutcomeUnknown: it says yes and names no instance."""
    if not told.get("new_contract"):
        raise API.error(OutcomeUnknown, f"Vast took the order and named no instance: {dict(told)}")
    return str(told["new_contract"])


def instance_of(row: Mapping[str, Any]) -> Instance | None:
    """None for an instance that is not ours."""
    ours = named(row.get("label"))
    if ours is None:
        return None
    state, (address, port) = _state(row), _ssh(row)
    return Instance(
        provider=NAME, id=str(row["id"]), name=str(row["label"]), run_id=ours[0], node=ours[1], attempt=ours[2],
        state="starting" if state == "running" and address is None else state,
        region=country(row), zone=_host(row), machine=_machine(row),
        address=address if state == "running" else None, port=port, user="root",
        preempted=bool(row.get("is_bid")) and state == "stopped", reason=str(row.get("status_msg") or "").strip(),
        console=f"{CONSOLE}/instances/",
        data={"machine_id": row.get("machine_id"), "usd_per_hour": row.get("dph_total")},
    )  # fmt: skip


def _state(row: Mapping[str, Any]) -> InstanceState:
    """A host that is offline for a moment may be training on: it counts as running, and its reason says so."""
    actual, intended = row.get("actual_status"), row.get("intended_status")
    if actual in ("exited", "stopped") or intended == "stopped":
        return "stopped"
    return "running" if actual in ("running", "offline") else "starting"


def _ssh(row: Mapping[str, Any]) -> tuple[str | None, int]:
    """The host's own address and the port that leads to the container's 22; else Vast's relay."""
    mapped = (row.get("ports") or {}).get("22/tcp") or []
    if mapped and row.get("public_ipaddr"):
        return str(row["public_ipaddr"]).strip(), int(mapped[0]["HostPort"])
    if row.get("ssh_host") and row.get("ssh_port"):
        return str(row["ssh_host"]), int(row["ssh_port"])
    return None, 22
