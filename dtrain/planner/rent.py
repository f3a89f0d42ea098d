"""Every machine of the price table that can run a config: what would be chosen there, hours, dollars, the front."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dtrain.config.origins import Loaded
from dtrain.errors import BadInput, DoesNotFit
from dtrain.hardware.gpus import GPUS, shortest
from dtrain.hardware.prices import Offer, Price, offers, prices
from dtrain.hardware.profiles import Profile, resolve_profile
from dtrain.models.facts import ModelFacts
from dtrain.planner.counts import DataCounts, counted_before, estimate_counts
from dtrain.planner.plan import Plan, make_plan
from dtrain.units import dollars

CARDS_PER_NODE = (1, 2, 4, 8)
"""How many cards of those sold singly are tried."""
NODES = (1, 2, 4, 8)
"""Machines of eight cards are tried joined, as far as a person without a contract gets them."""
WHOLE_MACHINE_GPUS = 8
COLAB = (
    "Colab is paid in compute units: $9.99 for 100, which Pro gives each month ($9.99), and Pro+ five times ($49.99); "
    "they are bought by the hundred and end after 90 days, a session ends after 24 hours at most (dtrain goes on from "
    "Drive), and no card is promised"
)
"""TechCrunch, 2022-09-29; colabtools issues 3617 and 4395; a public Colab client's limit of a session."""

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([mhd]?)\s*$")
_HOURS = {"m": 1 / 60, "h": 1.0, "": 1.0, "d": 24.0}


@dataclass(frozen=True)
class Limits:
    """What the person allows; None: anything."""

    within_hours: float | None = None
    max_cost_usd: float | None = None


@dataclass(frozen=True)
class Option:
    """One offer, and the run on it."""

    offer: Offer
    plan: Plan
    within_limits: bool = True
    on_front: bool = False
    """No other option within the limits is both faster and cheaper."""

    @property
    def hours(self) -> float:
        """From the order to the end: what is billed (boot, install and download included)."""
        return self.plan.run.billed_hours

    @property
    def usd(self) -> float:
        return self.hours * self.offer.usd_per_hour

    def as_json(self) -> dict[str, Any]:
        offer, plan = self.offer, self.plan
        return {
            "provider": offer.provider,
            "machine": offer.machine,
            "kind": offer.kind,
            "profile": plan.profile.name,
            "gpu": plan.profile.gpu.name,
            "gpus": plan.profile.gpus,
            "gpus_paid": offer.gpus,
            "nodes": plan.profile.nodes,
            "usd_per_hour": offer.usd_per_hour,
            "hours": round(self.hours, 4),
            "run_hours": round(plan.run.hours, 4),
            "usd": round(self.usd, 2),
            "priced_on": offer.priced_on,
            "source": offer.source,
            "pareto": self.on_front,
            "within_limits": self.within_limits,
            "choice": plan.choice.as_json(),
            "peak_gib": round(plan.memory.peak, 3),
            "capacity_gib": plan.profile.gpu.memory_gib,
            "tokens_per_second": round(plan.time.tokens_per_second, 1),
        }


@dataclass(frozen=True)
class Unable:
    """A machine that cannot run it, and why."""

    profile: str
    reason: str


@dataclass(frozen=True)
class Rent:
    """The whole market for one config."""

    config: str
    model: str
    limits: Limits
    options: tuple[Option, ...]
    """Cheapest first; free ones first of all. Those beyond the limits are kept, marked."""
    unable: tuple[Unable, ...]
    counts: DataCounts

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was assumed, what a card on offer needs, and what the table does not know."""
        cards = {option.plan.profile.gpu for option in self.options}
        notes = sorted(f"{gpu.title}: {gpu.note}" for gpu in cards if gpu.note)
        colab = [COLAB] if any(option.offer.provider == "colab" for option in self.options) else []
        return (*self.counts.warnings, *notes, *colab)

    @property
    def allowed(self) -> tuple[Option, ...]:
        return tuple(option for option in self.options if option.within_limits)

    def as_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "config": self.config,
            "model": self.model,
            "within_hours": self.limits.within_hours,
            "max_cost_usd": self.limits.max_cost_usd,
            "data": "exact" if self.counts.exact else "estimated",
            "warnings": list(self.warnings),
            "options": [option.as_json() for option in self.options],
            "unable": [{"profile": one.profile, "reason": one.reason} for one in self.unable],
        }


def rent(
    loaded: Loaded,
    facts: ModelFacts,
    limits: Limits,
    table: Sequence[Price] | None = None,
    counts: DataCounts | None = None,
) -> Rent:
    """Plan the config on every profile that can be rented. BadInput if no profile can be planned at all.

    `counts`: how much data there is, where that is known better than from the files.
    """
    known = prices() if table is None else tuple(table)
    counts = counts or counted_before(loaded.config) or estimate_counts(loaded.config, loaded.file)
    options: list[Option] = []
    unable: list[Unable] = []
    refusals: list[BadInput] = []
    for profile in profiles_to_try(known):
        offered = [offer for offer in offers(profile, known) if offer.gpus == profile.gpus]
        if not offered:
            continue
        try:
            plan = make_plan(loaded, profile, facts, counts)
        except BadInput as refusal:
            refusals.append(refusal)
            unable.append(Unable(profile.name, refusal.message))
            continue
        if plan.accepted:
            options += [Option(offer, plan) for offer in offered]
        else:
            unable.append(Unable(profile.name, _shortage(plan)))
    if refusals and len(refusals) == len(unable) and not options:
        raise refusals[0]
    return Rent(str(loaded.file or "<text>"), facts.name, limits, ranked(options, limits), tuple(unable), counts)


def profiles_to_try(table: Iterable[Price]) -> Iterator[Profile]:
    """Every card in every count that somebody sells, and whole machines joined; each once, in the table's order."""
    names = dict.fromkeys(name for price in table for name in _profile_names(price))
    return (resolve_profile(name) for name in names)


def _profile_names(price: Price) -> Iterator[str]:
    gpu = GPUS[price.gpu]
    if gpu.support != "full":
        return
    counts = [one for one in CARDS_PER_NODE if one <= price.up_to] if price.up_to > 1 else [price.gpus]
    joined = price.up_to == 1 and price.gpus == WHOLE_MACHINE_GPUS and price.kind == "on-demand"
    for count in counts:
        for nodes in NODES if joined else (1,):
            yield f"{shortest(gpu)}x{count}" + (f"x{nodes}" if nodes > 1 else "")


def _shortage(plan: Plan) -> str:
    if not plan.candidate.host_within_headroom:
        return f"needs {plan.memory.host_memory_gib:.0f} GiB of host memory, has {plan.profile.host_memory_gib:.0f}"
    return f"needs {plan.memory.peak:.1f} of {plan.profile.gpu.memory_gib:.1f} GiB per GPU, less the reserve"


def ranked(options: Iterable[Option], limits: Limits) -> tuple[Option, ...]:
    """Cheapest first, limits and Pareto front marked."""
    judged = [replace(option, within_limits=_within(option, limits)) for option in options]
    ordered = sorted(judged, key=lambda one: (one.usd, one.hours, one.offer.provider, one.offer.machine))
    fastest = float("inf")
    marked = []
    for option in ordered:
        front = option.within_limits and option.hours < fastest
        fastest = option.hours if front else fastest
        marked.append(replace(option, on_front=front))
    return tuple(marked)


def _within(option: Option, limits: Limits) -> bool:
    quick = limits.within_hours is None or option.hours <= limits.within_hours
    return quick and (limits.max_cost_usd is None or option.usd <= limits.max_cost_usd)


# --- what the person says -----------------------------------------------------------------------------------------


def hours_of(said: str) -> float:
    """`24h`, `90m`, `2d`, or a bare number of hours. BadInput for anything else."""
    match = _DURATION.match(said.lower())
    hours = float(match[1]) * _HOURS[match[2]] if match else 0.0
    if hours <= 0:
        raise BadInput("no duration", key="--within", value=said, allowed="24h, 90m, 2d", fix="--within 24h")
    return hours


def repriced(said: Iterable[str], table: Sequence[Price] | None = None) -> tuple[Price, ...]:
    """The table with prices a person knows better: `provider:machine=usd_per_hour`, one machine or card."""
    known = prices() if table is None else tuple(table)
    for one in said:
        known = _repriced(one, known)
    return known


def _repriced(said: str, table: tuple[Price, ...]) -> tuple[Price, ...]:
    name, _, amount = said.rpartition("=")
    usd = _usd(said, amount)
    if not any(_is_called(price, name) for price in table):
        names = [f"{price.provider}:{price.machine}" for price in table]
        starts = [one for one in names if one.startswith(name.strip().lower())]
        near = starts or difflib.get_close_matches(name, names, n=1, cutoff=0.4) or names
        raise BadInput(
            "no such machine in the price table", key="--price", value=said, allowed="PROVIDER:MACHINE=USD_PER_HOUR",
            fix=f'--price "{near[0]}={amount or "1.99"}"',
        )  # fmt: skip
    told = {"usd_per_hour": usd, "source": "--price", "priced_on": "as told"}
    return tuple(replace(price, **told) if _is_called(price, name) else price for price in table)  # type: ignore[arg-type]


def _is_called(price: Price, name: str) -> bool:
    return f"{price.provider}:{price.machine}".lower() == name.strip().lower()


def _usd(said: str, amount: str) -> float:
    try:
        usd = float(amount.strip().removeprefix("$"))
    except ValueError:
        usd = -1.0  # told below, with the other amounts that are none
    if not 0 <= usd < float("inf"):
        raise BadInput(
            "no price", key="--price", value=said, allowed="PROVIDER:MACHINE=USD_PER_HOUR",
            fix=f'--price "{said.rpartition("=")[0] or said}=1.99"',
        )  # fmt: skip
    return usd


def shortfall(told: Rent) -> DoesNotFit | None:
    """What to say, with the nearest ways on, where nothing is left; None where something is."""
    if told.allowed:
        return None
    if not told.options:
        return DoesNotFit(
            f"no machine of the price table can run {told.model} as the file says",
            file=told.config,
            fix="dtrain plan FILE --profile h100x8 tells the nearest changes that would fit",
        )
    cheapest, fastest = told.options[0], min(told.options, key=lambda one: one.hours)
    return DoesNotFit(
        "nothing is within the limits",
        file=told.config,
        allowed=f"the fastest takes {fastest.hours:.1f} h, the cheapest costs {dollars(cheapest.usd)}",
        fix=f"{_limits_for(fastest)}, or {_limits_for(cheapest)}",
    )


def _limits_for(option: Option) -> str:
    hours, usd = math.ceil(option.hours), math.ceil(option.usd)
    return f"--within {hours}h --max-cost {usd} ({option.plan.profile.name} at {option.offer.provider})"
