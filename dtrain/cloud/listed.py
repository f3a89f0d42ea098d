"""Offers from the dated price table, for providers that tell no price themselves."""

from __future__ import annotations

from collections.abc import Collection

from dtrain.cloud.provider import Need, Offer
from dtrain.hardware.prices import Price, prices


def listed_offers(provider: str, need: Need, not_these: Collection[str] = ()) -> list[Offer]:
    """The provider's machines that are enough for one node, without a place: those with the fewest cards, the cheapest
    first. Empty where the table knows none.

    A spot price that the table lacks is taken to be the on-demand one, which it does not exceed, and said so.
    """
    rows = [row for row in prices() if row.provider == provider and row.gpu == need.gpu]
    enough = [row for row in rows if row.gpus >= need.gpus and row.machine not in not_these]
    fewest = min((row.gpus for row in enough), default=0)
    chosen = {row.machine: row for row in sorted(enough, key=lambda row: _fits_kind(row, need)) if row.gpus == fewest}
    offers = [_offer(row, need) for row in chosen.values() if need.spot or row.kind == "on-demand"]
    return sorted(offers, key=lambda offer: offer.usd_per_hour)


def listed_cards(provider: str) -> list[str]:
    """`8 × h100`: what the table knows of the provider."""
    rows = sorted({(row.gpu, row.gpus) for row in prices() if row.provider == provider})
    return [f"{count} × {gpu}" for gpu, count in rows]


def _fits_kind(row: Price, need: Need) -> bool:
    return row.kind == ("spot" if need.spot else "on-demand")


def _offer(row: Price, need: Need) -> Offer:
    source = row.source if _fits_kind(row, need) else f"{row.source} (on-demand; spot is not dearer)"
    return Offer(
        row.provider, "", row.machine, row.gpu, row.gpus, row.usd_per_hour, spot=need.spot, priced_on=row.priced_on,
        price_source=source,
    )  # fmt: skip
