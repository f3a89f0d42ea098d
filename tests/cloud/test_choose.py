"""Which machine is taken next: price, limits, refusals, other regions and providers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from dtrain.cloud.choose import Choice, offers
from dtrain.cloud.ledger import Standing
from dtrain.cloud.meter import Meter
from dtrain.cloud.options import CloudOptions
from dtrain.cloud.order_book import OrderBook
from dtrain.cloud.provider import Abilities, Instance, Need, NoCapacity, NoCredentials, NoRights, NoSuchMachine, Offer

ABILITIES = Abilities(True, True, True, True, True, True)
BOOK = OrderBook("run", "dear", {}, "h100", 1, 8, "cuda", (), {"billed_hours": 1.0}, {}, (), 1.0, 4.0)


def an_offer(provider: str, region: str, usd: float, capacity: bool | None = None) -> Offer:
    return Offer(provider, region, "big", "h100", 8, usd, capacity=capacity)


@dataclass
class Shop:
    """What a provider offers, or why it does not."""

    has: Sequence[Offer] | Exception
    abilities: Abilities = ABILITIES
    asked: list[Need] = field(default_factory=list)

    def offers(self, need: Need) -> Sequence[Offer]:
        self.asked.append(need)
        if isinstance(self.has, Exception):
            raise self.has
        return self.has


def shops() -> dict[str, Any]:
    return {
        "dear": Shop([an_offer("dear", "east", 20.0), an_offer("dear", "west", 22.0)]),
        "cheap": Shop([an_offer("cheap", "north", 21.0), an_offer("cheap", "south", 5.0, capacity=False)]),
        "closed": Shop(NoCredentials("no key")),
    }


def a_choice(options: CloudOptions) -> Choice:
    standing = Standing("run", "dear", "/", {}, 1, False, False)
    return Choice(BOOK, options, shops(), Meter(BOOK, options, standing))


def test_only_anywhere_asks_other_providers_and_in_all_their_regions() -> None:
    own = offers(Need("h100", 8), CloudOptions(), "dear", shops())
    assert [one.region for one in own] == ["east", "west"]
    market = shops()
    everywhere = offers(Need("h100", 8, regions=("east",)), CloudOptions(anywhere=True), "dear", market)
    assert [one.region for one in everywhere] == ["east", "north", "west"]
    assert market["cheap"].asked[0].regions == ()


def test_a_named_provider_without_the_machine_leaves_the_others_with_anywhere() -> None:
    market = shops() | {"dear": Shop(NoSuchMachine("none"))}
    assert offers(Need("h100", 8), CloudOptions(anywhere=True), "dear", market)[0].provider == "cheap"
    with pytest.raises(NoSuchMachine):
        offers(Need("h100", 8), CloudOptions(), "dear", market)


def test_anywhere_goes_by_price_from_region_to_provider() -> None:
    choice = a_choice(CloudOptions(anywhere=True))
    taken = []
    for _ in range(3):
        offer = choice.next()
        taken.append((offer.provider, offer.region))
        choice.refuse(offer, NoCapacity("full"))
    assert taken == [("dear", "east"), ("cheap", "north"), ("dear", "west")]
    with pytest.raises(NoCapacity):
        choice.next()


def test_a_refusal_that_is_the_same_everywhere_ends_it() -> None:
    choice = a_choice(CloudOptions(anywhere=True))
    with pytest.raises(NoRights):
        choice.refuse(choice.next(), NoRights("not you"))


def test_a_second_node_is_of_the_first_ones_region() -> None:
    beside = Instance("dear", "i-1", "n", "run", 0, "running", "west", "big")
    assert a_choice(CloudOptions()).next(beside).region == "west"


def test_a_machine_that_was_bad_comes_last() -> None:
    choice = a_choice(CloudOptions())
    choice.note_bad(Instance("dear", "i-1", "n", "run", 0, "running", "east", "big"))
    assert choice.next().region == "west"
