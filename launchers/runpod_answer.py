"""What RunPod answers: pods as instances, its words (HTTP says 200) as what a person must do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dtrain.cloud.cards import reported_names
from dtrain.cloud.provider import (
    AccountClosed,
    Instance,
    InstanceState,
    Need,
    NoCapacity,
    NoCredentials,
    NoRights,
    NoSuchMachine,
    Offer,
    ProviderError,
    QuotaReached,
)

from .container import named
from .runpod_options import ANYWHERE, API, CONSOLE, NAME, RunpodOptions

_WORDS: tuple[tuple[str, type[ProviderError]], ...] = (
    ("no longer any instances available", NoCapacity),
    ("no instances", NoCapacity),
    ("bid", NoCapacity),
    ("spend limit", AccountClosed),
    ("balance", AccountClosed),
    ("funds", AccountClosed),
    ("suspended", AccountClosed),
    ("maximum number of pods", QuotaReached),
    ("unauthorized", NoRights),
    ("permission", NoRights),
    ("forbidden", NoRights),
)
"""Of GraphQL errors, which have no codes: what their text holds (create_on_demand_pod.py of ashleykleynhans/runpod-api
quotes the first). The first that fits counts."""
GONE = ("pod not found", "does not exist")
_STATES: Mapping[str, InstanceState] = {
    "CREATED": "starting", "RESTARTING": "starting", "EXITED": "stopped", "PAUSED": "stopped", "DEAD": "stopped",
    "TERMINATED": "gone",
}  # fmt: skip
_PRICES = {("SECURE", False): "securePrice", ("COMMUNITY", False): "communityPrice"}
_PRICES |= {("SECURE", True): "secureSpotPrice", ("COMMUNITY", True): "communitySpotPrice"}


def refusal(status: int, told: Mapping[str, Any]) -> ProviderError | None:
    """What an answer refuses; None where it does not."""
    errors = told.get("errors")
    words = str(errors[0].get("message", "")) if isinstance(errors, list) and errors else ""
    if status == 401:
        return API.error(NoCredentials, words or "the API key is not believed")
    if status == 403:
        return API.error(NoRights, words or "the API key may not do this")
    if not words and status < 400:
        return None
    words = words or str(told)
    kind = next((kind for said, kind in _WORDS if said in words.lower()), ProviderError)
    return API.error(kind, words)


def spend_refusal(account: Mapping[str, Any] | None, usd_per_hour: float) -> ProviderError | None:
    """RunPod says `no instances` where an account may spend no more: what the account itself tells."""
    told = account or {}
    balance, limit, spent = (told.get(name) for name in ("clientBalance", "spendLimit", "currentSpendPerHr"))
    if balance is not None and balance < usd_per_hour:
        return API.error(AccountClosed, f"the balance of ${balance:.2f} does not pay an hour of ${usd_per_hour:.2f}")
    if limit and (spent or 0) + usd_per_hour > limit:
        return API.error(AccountClosed, f"${usd_per_hour:.2f} an hour more than the spend limit of ${limit:.2f} allows")
    return None


def instance_of(pod: Mapping[str, Any]) -> Instance | None:
    """None for a pod that is not ours."""
    ours = named(pod.get("name"))
    if ours is None:
        return None
    address, port = _ssh(pod)
    state = _state(pod, address)
    machine = pod.get("machine") or {}
    return Instance(
        provider=NAME, id=str(pod["id"]), name=str(pod["name"]), run_id=ours[0], node=ours[1], attempt=ours[2],
        state=state, region="", machine=machine.get("gpuDisplayName") or "",
        address=address, port=port or 22, user="root",
        preempted=pod.get("podType") == "INTERRUPTABLE" and state == "stopped",
        reason=str(pod.get("lastStatusChange") or "") if state == "stopped" else "",
        console=console_of(pod), data={"usd_per_hour": pod.get("costPerHr")},
    )  # fmt: skip


def console_of(pod: Mapping[str, Any]) -> str:
    return f"{CONSOLE}/pods?id={pod['id']}"


def _state(pod: Mapping[str, Any], address: str | None) -> InstanceState:
    status = str(pod.get("desiredStatus"))
    return ("running" if address else "starting") if status == "RUNNING" else _STATES.get(status, "starting")


def _ssh(pod: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """Where port 22 is reached from outside, once that is known."""
    ports = (pod.get("runtime") or {}).get("ports") or []
    public = [one for one in ports if one.get("privatePort") == 22 and one.get("isIpPublic")]
    return (public[0]["ip"], int(public[0]["publicPort"])) if public else (None, None)


def offers_of(types: Sequence[Mapping[str, Any]], need: Need, options: RunpodOptions) -> list[Offer]:
    """Cheapest first. NoSuchMachine tells what there is instead."""
    names = reported_names(need.gpu)
    cards = [card for card in types if card["id"] in names]
    able = [card for card in cards if (card.get("maxGpuCount") or 0) >= need.gpus]
    if not able:
        most = max((card.get("maxGpuCount") or 0 for card in cards), default=0)
        has = f"at most {most} {need.gpu} in one pod" if most else f"no {need.gpu}"
        raise API.error(NoSuchMachine, f"RunPod has {has}")
    found = [offer for card in able for offer in _offers(card, need, options)]
    if not found:
        raise API.error(NoCapacity, f"RunPod names no price for {need.gpus} × {need.gpu} now: nobody offers one")
    return sorted(found, key=lambda offer: (offer.usd_per_hour, offer.machine))


def listed(types: Sequence[Mapping[str, Any]], gpu: str) -> list[Offer]:
    """One card of this kind in each cloud, for the price table."""
    both = RunpodOptions(cloud="all")
    sold = [card for card in types if card["id"] in reported_names(gpu)]
    offers = [(card, offer) for card in sold for offer in _offers(card, Need(gpu, 1), both)]
    return [replace(offer, data={**offer.data, **_kind(card, offer)}) for card, offer in offers]


def _kind(card: Mapping[str, Any], offer: Offer) -> dict[str, Any]:
    kind = "marketplace" if offer.data["cloud"] == "COMMUNITY" else "on-demand"
    return {"kind": kind, "up_to": card.get("maxGpuCount") or 1}


def _offers(card: Mapping[str, Any], need: Need, options: RunpodOptions) -> list[Offer]:
    return [
        Offer(
            NAME, region, f"{card['id']}, {cloud.lower()} cloud", need.gpu, need.gpus, round(price * need.gpus, 4),
            spot=need.spot, priced_on="live", price_source="RunPod's API",
            data={"gpu_type_id": card["id"], "cloud": cloud},
        )
        for cloud in options.clouds
        if (price := card.get(_PRICES[cloud, need.spot]))
        for region in need.regions or (ANYWHERE,)
    ]  # fmt: skip
