"""Live prices into the person's own dated table, which plans and `rent` prefer to the one that ships with dtrain."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from dtrain import paths
from dtrain.cloud.cards import cards
from dtrain.cloud.launcher import cloud_launchers
from dtrain.cloud.market import patiently
from dtrain.cloud.provider import Need, NoCapacity, NoCredentials, NoSuchMachine, Offer, Provider
from dtrain.errors import BadInput, DtrainError, LauncherRefused
from dtrain.files import write_json
from dtrain.hardware import prices
from dtrain.hardware.prices import Price

PATIENCE_SECONDS = 30.0
LIVE = "live"


@runtime_checkable
class SellsByList(Protocol):
    """An ability: everything that is sold on demand, in as few requests as it takes."""

    def all_offers(self) -> Sequence[Offer]:
        """`data` may say `kind` (a word of the price table) and `up_to`, where cards are sold singly."""


@dataclass(frozen=True)
class Asked:
    """What one provider told."""

    provider: str
    prices: tuple[Price, ...] = ()
    no_credentials: bool = False
    problem: str = ""
    """Why there are no prices, on one line."""

    def as_json(self) -> dict[str, Any]:
        state = "skipped" if self.no_credentials else "failed" if self.problem else "asked"
        return {"provider": self.provider, "state": state, "prices": len(self.prices), "reason": self.problem or None}


def refresh(only: str | None = None, say: Callable[[str], None] = lambda words: None) -> list[Asked]:
    """Ask every provider that is installed, or one, and write what they tell; a provider that tells nothing keeps its
    older rows. LauncherRefused where none of them told a price."""
    asked = [_asked(name, launcher, say) for name, launcher in sorted(_launchers(only).items())]
    told = [one for one in asked if one.prices]
    if not told:
        raise LauncherRefused(
            "no provider told a price", value="; ".join(f"{one.provider}: {one.problem}" for one in asked),
            fix="give a provider's key: dtrain doctor, or docs/clouds.md",
        )  # fmt: skip
    names = {one.provider for one in told}
    kept = [price for price in prices.own_prices() if price.provider not in names]
    rows = [asdict(price) for price in [*kept, *(price for one in told for price in one.prices)]]
    write_json(paths.own_prices(), {"schema_version": 1, "prices": rows})
    return asked


def _launchers(only: str | None) -> Mapping[str, Any]:
    found = cloud_launchers()
    if only is not None and only not in found:
        raise BadInput("no provider of that name is installed", key="PROVIDER", value=only, allowed=", ".join(found))
    return found if only is None else {only: found[only]}


def _asked(name: str, launcher: Any, say: Callable[[str], None]) -> Asked:
    try:
        provider: Provider = launcher.provider(launcher.options_of({}))
        found = _offers(provider)
    except NoCredentials as refused:
        told = Asked(name, no_credentials=True, problem=refused.message)
    except DtrainError as error:
        told = Asked(name, problem=error.message)
    else:
        day = time.strftime("%Y-%m-%d", time.gmtime())
        rows = _cheapest(_price(one, day) for one in found if one.priced_on == LIVE and one.gpu in cards())
        told = Asked(name, rows, problem="" if rows else "it tells no live prices: the table's hold")
    say(f"{name}: {told.problem or f'{len(told.prices)} prices'}")
    return told


def _offers(provider: Provider) -> list[Offer]:
    """All that it has of what anybody sells."""
    if isinstance(provider, SellsByList):
        return list(patiently(provider.all_offers, PATIENCE_SECONDS))
    sold = dict.fromkeys((row.gpu, row.gpus) for row in prices.shipped_prices() if row.gpu in cards())
    return [offer for gpu, gpus in sold for offer in _offers_for(provider, Need(gpu, gpus))]


def _offers_for(provider: Provider, need: Need) -> Sequence[Offer]:
    try:
        return patiently(lambda: provider.offers(need), PATIENCE_SECONDS)
    except (NoSuchMachine, NoCapacity):
        return ()


def _price(offer: Offer, day: str) -> Price:
    return Price(
        offer.provider, offer.machine, offer.gpu, offer.gpus, offer.usd_per_hour, offer.data.get("kind", "on-demand"),
        day, f"asked: {offer.price_source or offer.provider}", offer.data.get("up_to", 1),
    )  # fmt: skip


def _cheapest(rows: Iterable[Price]) -> tuple[Price, ...]:
    """One row for each machine: of its regions the cheapest."""
    found: dict[tuple[str, str, str], Price] = {}
    for row in sorted(rows, key=lambda one: -one.usd_per_hour):
        found[row.machine, row.gpu, row.kind] = row
    return tuple(sorted(found.values(), key=lambda one: (one.gpu, one.gpus, one.usd_per_hour)))
