"""What machines cost: a dated table, because no provider's SDK ships one and prices move."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import ceil
from pathlib import Path
from typing import Literal

from dtrain import paths
from dtrain.errors import BadInput
from dtrain.hardware.gpus import BY_NAME
from dtrain.hardware.profiles import Profile

Kind = Literal["on-demand", "spot", "marketplace", "notebook", "free"]
"""`spot` may be taken away, `marketplace` is somebody's machine at an asking price, `notebook` is a session that ends
by itself, `free` one that ends without notice."""


@dataclass(frozen=True)
class Price:
    """One row of prices.json."""

    provider: str
    machine: str
    """As the provider calls it."""
    gpu: str
    """Catalogue name."""
    gpus: int
    """In one machine; 1 with `up_to` where the provider sells by the card."""
    usd_per_hour: float
    kind: Kind
    priced_on: str
    """Year, month and day as far as they are known, or `undated`."""
    source: str
    up_to: int = 1
    """So many of them can be had in one machine."""


@dataclass(frozen=True)
class Offer:
    """What a whole profile costs at one provider."""

    provider: str
    machine: str
    gpus: int
    """Paid for: more than the profile's where a machine comes only whole."""
    usd_per_hour: float
    """For all nodes together."""
    priced_on: str
    source: str
    kind: Kind = "on-demand"


def prices() -> tuple[Price, ...]:
    """The person's own rows (`dtrain prices refresh`) instead of the shipped ones for the same cards and provider."""
    own = own_prices()
    known = {_sold(row) for row in own}
    return (*own, *(row for row in shipped_prices() if _sold(row) not in known))


def _sold(row: Price) -> tuple[str, str, int, str]:
    return row.provider, row.gpu, row.gpus, row.kind


@cache
def shipped_prices() -> tuple[Price, ...]:
    document = json.loads(Path(__file__).with_name("prices.json").read_text(encoding="utf-8"))
    return tuple(Price(**row) for row in document)


def prices_of(gpu: str | None) -> list[Price]:
    """Of one card or of all, the cheapest card-hour first. BadInput for a card that the catalogue does not know."""
    if gpu is not None and gpu not in BY_NAME:
        near = difflib.get_close_matches(gpu, BY_NAME, n=1)
        raise BadInput("no such card", key="--gpu", value=gpu, fix=near[0] if near else "dtrain profiles")
    rows = [row for row in prices() if gpu is None or row.gpu == BY_NAME[gpu].name]
    return sorted(rows, key=lambda row: (row.gpu, row.usd_per_hour / max(1, row.gpus), row.provider))


def own_prices() -> tuple[Price, ...]:
    """Rows that were asked for from here; empty where none were. BadInput for a file that is none of ours."""
    file = paths.own_prices()
    try:
        return _read_own(file, file.stat().st_mtime_ns)
    except (FileNotFoundError, NotADirectoryError):
        return ()


@lru_cache(maxsize=4)
def _read_own(file: Path, changed: int) -> tuple[Price, ...]:
    try:
        return tuple(Price(**row) for row in json.loads(file.read_text(encoding="utf-8"))["prices"])
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(
            f"the table of live prices cannot be read: {error}", file=str(file),
            fix=f"rm {file}, or dtrain prices refresh after it",
        ) from None  # fmt: skip


def offers(profile: Profile, table: Sequence[Price] | None = None) -> list[Offer]:
    """Every way to rent this profile that the table knows, cheapest first; free ones last, as no plan can rely on them.

    A machine with more cards than a node needs is offered whole. Cards sold singly, whose pods are not
    joined by a network, and the free ones are offered for one node only. CPU profiles have no offers. `table`
    stands in for the shipped one, where a person knows a price better.
    """
    known = prices() if table is None else table
    found = [offer for price in known if price.gpu == profile.gpu.name and (offer := _offer(price, profile))]
    wholes = [offer for offer in found if not _has_smaller(offer, found)]
    return sorted(wholes, key=lambda offer: (offer.kind == "free", offer.usd_per_hour, offer.provider))


def _offer(price: Price, profile: Profile) -> Offer | None:
    by_the_card = price.up_to > 1
    count = ceil(profile.gpus_per_node / price.gpus) if by_the_card else 1
    if count > price.up_to or count * price.gpus < profile.gpus_per_node:
        return None
    if profile.nodes > 1 and (by_the_card or price.kind in ("free", "notebook")):
        return None
    machines = count * profile.nodes
    return Offer(
        provider=price.provider,
        machine=price.machine if machines == 1 else f"{machines} × {price.machine}",
        gpus=price.gpus * machines,
        usd_per_hour=round(price.usd_per_hour * machines, 4),
        priced_on=price.priced_on,
        source=price.source,
        kind=price.kind,
    )


def _has_smaller(offer: Offer, others: list[Offer]) -> bool:
    """The same provider has a smaller machine that is enough, of the same kind and no dearer."""
    return any(
        other.provider == offer.provider
        and other.kind == offer.kind
        and other.gpus < offer.gpus
        and other.usd_per_hour <= offer.usd_per_hour
        for other in others
    )
