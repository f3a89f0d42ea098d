"""What a rented run will cost, and the cheapest that stays under a limit: price an hour times the plan's hours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dtrain.cloud.options import CloudOptions
from dtrain.cloud.provider import Offer
from dtrain.errors import BadInput
from dtrain.units import dollars, duration

UNKNOWN_HOURS = 1.0
"""Where the plan has no hours (a bare run folder): long enough to boot and try."""
LIMIT_FACTOR, LIMIT_EXTRA_HOURS = 3.0, 1.0
"""Without --max-cost and --max-hours a machine ends itself after three times the estimate and an hour."""


@dataclass(frozen=True)
class Estimate:
    """Of one offer, for all nodes of a run."""

    usd_per_hour: float
    hours: float
    limit_hours: float
    priced_on: str
    price_source: str

    @property
    def usd(self) -> float:
        return self.usd_per_hour * self.hours

    @property
    def limit_usd(self) -> float:
        return self.usd_per_hour * self.limit_hours

    def in_words(self) -> str:
        priced = f"priced {self.priced_on}" + (f", {self.price_source}" if self.price_source else "")
        return (
            f"{dollars(self.usd_per_hour)} an hour ({priced}) for about {duration(self.hours * 3600)}: "
            f"{dollars(self.usd)} with boot, set-up, data, training and upload; "
            f"it ends by itself after {duration(self.limit_hours * 3600)}, {dollars(self.limit_usd)}"
        )


def billed_hours(plan: Mapping[str, Any]) -> float:
    """From the order to the end, as the plan tells."""
    told = plan.get("billed_hours") or plan.get("hours")
    return float(told) if told else UNKNOWN_HOURS


def estimate(offer: Offer, nodes: int, plan: Mapping[str, Any], options: CloudOptions) -> Estimate:
    hours, usd_per_hour = billed_hours(plan), offer.usd_per_hour * nodes
    limits = [options.max_hours] if options.max_hours else []
    if options.max_cost and usd_per_hour:
        limits.append(options.max_cost / usd_per_hour)
    limit = min(limits) if limits else LIMIT_FACTOR * hours + LIMIT_EXTRA_HOURS
    return Estimate(usd_per_hour, hours, limit, offer.priced_on, offer.price_source)


def affordable(offers: Sequence[Offer], nodes: int, plan: Mapping[str, Any], options: CloudOptions) -> list[Offer]:
    """Those whose estimate stays within the limits. BadInput where none does, with what it would take."""
    fits = [offer for offer in offers if _within(estimate(offer, nodes, plan, options), options)]
    if offers and not fits:
        cheapest = min((estimate(offer, nodes, plan, options) for offer in offers), key=lambda one: one.usd)
        over_cost = options.max_cost is not None and cheapest.usd > options.max_cost
        key, value = ("--max-cost", options.max_cost) if over_cost else ("--max-hours", options.max_hours)
        raise BadInput(
            f"the cheapest machine for this profile is estimated at {dollars(cheapest.usd)} "
            f"({dollars(cheapest.usd_per_hour)} an hour for {cheapest.hours:.2f} h): nothing was rented",
            key=key, value=value, fix="see the cheapest plans that fit: dtrain rent FILE"
            + (f" --max-cost {options.max_cost:g}" if options.max_cost else ""),
        )  # fmt: skip
    return fits


def _within(one: Estimate, options: CloudOptions) -> bool:
    cheap = options.max_cost is None or one.usd <= options.max_cost
    return cheap and (options.max_hours is None or one.hours <= options.max_hours)
