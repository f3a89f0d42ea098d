"""Which machine to order next: the cheapest that fits the limits, was not refused, and was not found bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dtrain.cloud.estimate import affordable
from dtrain.cloud.market import PATIENCE_SECONDS, patiently
from dtrain.cloud.meter import Meter
from dtrain.cloud.options import CloudOptions
from dtrain.cloud.order_book import OrderBook
from dtrain.cloud.provider import Instance, Need, NoCapacity, NoSuchMachine, Offer, Provider, ProviderError

OTHERS_PATIENCE_SECONDS = 10.0
"""With --anywhere: for a provider that was not named."""


def need_of(gpu: str, gpus_per_node: int, nodes: int, options: CloudOptions) -> Need:
    return Need(gpu, 0 if gpu == "cpu" else gpus_per_node, nodes, options.disk_gib, options.spot, options.regions)


class Choice:
    """The offers of one run, and what became of those that were tried."""

    def __init__(self, book: OrderBook, options: CloudOptions, providers: Mapping[str, Provider], meter: Meter) -> None:
        self.book = book
        self.options = options
        self.providers = providers
        self.meter = meter
        self._refused: list[tuple[Offer, ProviderError]] = []
        self._bad: list[Instance] = []

    def next(self, beside: Instance | None = None) -> Offer:
        """In the region of `beside`, the machine of another node. Raises the last refusal where none is left."""
        book = self.book
        need = need_of(book.gpu, book.ranks_per_node, book.nodes, self.options)
        found = offers(need, self.options, book.launcher, self.providers)
        fits = affordable(found, self.book.nodes, self.book.plan, self.options)
        refused = [(one.provider, one.region, one.zone, one.machine) for one, _ in self._refused]
        left = [
            one for one in fits
            if (one.provider, one.region, one.zone, one.machine) not in refused
            and _is_near(one, beside) and self._may_follow(one)
        ]  # fmt: skip
        if not left and self._refused:
            raise self._refused[-1][1]
        if not left:
            raise NoSuchMachine(
                f"{self.book.launcher} has no machine for this profile", key="--profile", value=self.book.gpu,
                fix="dtrain rent FILE lists who has one",
            )  # fmt: skip
        return min(left, key=lambda one: (self._was_bad(one), one.usd_per_hour))

    def refuse(self, offer: Offer, error: ProviderError) -> None:
        """Another offer may be tried: of the region's next zone, with --anywhere any; else the refusal is the run's."""
        self._refused.append((offer, error))
        if not error.elsewhere:
            raise error
        if not self.options.anywhere:
            error.fix = f"{error.fix}; or --anywhere: the next cheapest region" if error.fix else "--anywhere"

    def _may_follow(self, one: Offer) -> bool:
        if self.options.anywhere or not self._refused:
            return True
        last = self._refused[-1][0]
        return (one.provider, one.region, one.machine) == (last.provider, last.region, last.machine)

    def note_bad(self, instance: Instance) -> None:
        self._bad.append(instance)

    def _was_bad(self, one: Offer) -> bool:
        """An offer without a zone may be the bad one's."""
        return any(
            (one.provider, one.region, one.machine) == (bad.provider, bad.region, bad.machine)
            and one.zone in ("", bad.zone)
            for bad in self._bad
        )


def _is_near(offer: Offer, beside: Instance | None) -> bool:
    if beside is None:
        return True
    same = (offer.provider, offer.region, offer.machine) == (beside.provider, beside.region, beside.machine)
    return same and offer.zone in ("", beside.zone)


def _as_told(need: Need, options: CloudOptions, provider: str, region: str) -> Offer:
    """A machine and its price that a person knows better than any table."""
    return Offer(
        provider, region, options.machine or "", need.gpu, need.gpus, options.usd_per_hour or 0.0, options.spot,
        priced_on="as told", price_source="usd_per_hour",
    )  # fmt: skip


def offers(
    need: Need, options: CloudOptions, first: str, providers: Mapping[str, Provider],
    patience_seconds: float = PATIENCE_SECONDS,
) -> Sequence[Offer]:  # fmt: skip
    """What could be rented, cheapest first; with --anywhere also from every other provider with credentials."""
    try:
        found = _own_offers(need, options, first, providers[first], patience_seconds)
    except (NoSuchMachine, NoCapacity):
        if not options.anywhere:
            raise
        found = []
    for name, provider in providers.items() if options.anywhere else ():
        if name != first and (need.nodes == 1 or provider.abilities.several_nodes):
            found += _other_offers(replace(need, regions=()), provider)
    left = [one for one in found if one.capacity is not False]
    return sorted(left, key=lambda one: (one.usd_per_hour, one.provider != first))


def _own_offers(
    need: Need, options: CloudOptions, name: str, provider: Provider, patience_seconds: float
) -> list[Offer]:
    if options.machine and options.usd_per_hour and options.regions:
        return [_as_told(need, options, name, region) for region in options.regions]
    found = patiently(lambda: provider.offers(need), patience_seconds)
    return [one for one in found if options.machine in (None, one.machine)]


def _other_offers(need: Need, provider: Provider) -> list[Offer]:
    """Of a provider that was not named: one that has nothing, or no key, is passed over."""
    try:
        return list(patiently(lambda: provider.offers(need), OTHERS_PATIENCE_SECONDS))
    except ProviderError:
        return []
