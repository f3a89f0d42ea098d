from __future__ import annotations

import re
from dataclasses import replace

import pytest

from dtrain.hardware.prices import offers, prices
from dtrain.hardware.profiles import resolve_profile


def test_every_price_is_dated_and_sourced() -> None:
    for price in prices():
        assert re.fullmatch(r"2026-\d\d(-\d\d)?|undated", price.priced_on)
        assert price.source
        assert price.usd_per_hour > 0 or price.kind == "free"


@pytest.mark.parametrize("name", ["a100x8", "a100x3", "h100x1", "h100x8x4", "l4x2"])
def test_offers_come_cheapest_first_and_have_enough_cards(name: str) -> None:
    profile = resolve_profile(name)
    found = offers(profile)
    assert found
    assert [one.usd_per_hour for one in found] == sorted(one.usd_per_hour for one in found)
    assert all(one.gpus >= profile.gpus for one in found)


def test_prices_are_for_the_whole_profile() -> None:
    by_machine = {one.machine: one for one in offers(resolve_profile("a100x8"))}
    assert by_machine["p4de.24xlarge"].usd_per_hour == 27.4471
    assert by_machine["8 × A100 SXM, secure cloud"].usd_per_hour == pytest.approx(8 * 1.79)
    four_nodes = {one.machine: one for one in offers(resolve_profile("h100x8x4"))}
    assert four_nodes["4 × p5.48xlarge"].usd_per_hour == pytest.approx(4 * 55.04)
    assert four_nodes["4 × p5.48xlarge"].gpus == 32


def test_a_machine_that_comes_only_whole_is_offered_whole() -> None:
    by_machine = {one.machine: one for one in offers(resolve_profile("a100x4"))}
    assert by_machine["p4de.24xlarge"].gpus == 8
    assert by_machine["4 × A100 SXM, community cloud"].gpus == 4


def test_the_smallest_machine_that_is_enough() -> None:
    machines = [one.machine for one in offers(resolve_profile("a10gx1"))]
    assert machines == ["g5.xlarge"]


def test_cards_sold_singly_are_not_offered_over_nodes() -> None:
    assert {one.provider for one in offers(resolve_profile("h100x8x2"))} == {"aws", "gcp", "lambda"}


def test_free_comes_last() -> None:
    assert [one.kind for one in offers(resolve_profile("t4x1"))][-1] == "free"


def test_no_offers_for_a_cpu_or_for_a_card_of_ones_own() -> None:
    assert offers(resolve_profile("cpu")) == []
    own = resolve_profile("a100x8")
    assert offers(replace(own, gpu=replace(own.gpu, name="mine"))) == []
