"""Parts of the road that need no machine: the ledger, the limits, options, user data."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dtrain.cloud import keys, ledger, teardown
from dtrain.cloud.estimate import affordable, estimate
from dtrain.cloud.ledger import Ledger
from dtrain.cloud.market import Market
from dtrain.cloud.meter import Meter
from dtrain.cloud.options import CloudOptions, read_options
from dtrain.cloud.order_book import OrderBook
from dtrain.cloud.provider import Instance, NoCredentials, Offer, Order
from dtrain.cloud.stop_request import StopRequest
from dtrain.cloud.user_data import HIDDEN_KEY, user_data
from dtrain.errors import BadInput, StillBilled
from dtrain.paths import RunPaths

OFFER = Offer("aws", "us-east-1", "p4d.24xlarge", "a100-40gb", 8, 20.0, priced_on="2026-11-09", price_source="page")
ORDER = Order("20261123-191500-k3f9", 0, 1, OFFER, "script", "ssh-ed25519 A", "203.0.113.7/32", 3600.0)
INSTANCE = Instance("aws", "i-1", ORDER.name, ORDER.run_id, 0, "running", "us-east-1", "p4d.24xlarge", console="LINK")
BOOK = OrderBook(ORDER.run_id, "aws", {}, "a100-40gb", 1, 8, "cuda", (), {}, {}, (), 2.0, 4.0)


def begun() -> Ledger:
    made = Ledger(ORDER.run_id)
    made.begun("aws", Path("/runs/mine"))
    return made


def state(of: Ledger) -> str:
    standing = of.standing()
    assert standing is not None
    return standing.machines[ORDER.name].state


def test_the_ledger_tells_what_may_exist() -> None:
    book = begun()
    book.intended(ORDER, "aws")
    assert state(book) == "intended"
    book.created(INSTANCE)
    standing = book.standing()
    assert standing is not None
    assert standing.may_exist[0].instance == INSTANCE
    book.destroying(ORDER.name, "done")
    assert state(book) == "destroying"
    book.gone(ORDER.name)
    standing = book.standing()
    assert standing is not None
    assert (standing.may_exist, standing.attempts(0)) == ([], 1)


def test_a_line_that_a_crash_cut_in_half_swallows_none_after_it() -> None:
    book = begun()
    book.intended(ORDER, "aws")
    with book.path.open("a") as stream:
        stream.write('{"event": "created", "na')
    assert state(book) == "intended"
    book.refused(ORDER.name, "no capacity")
    assert state(book) == "refused"


def test_a_resumed_run_has_another_life_with_a_bill_of_its_own() -> None:
    book = begun()
    book.intended(ORDER, "aws")
    book.gone(ORDER.name)
    book.ended("done")
    book.begun("aws", Path("/runs/mine"))
    standing = book.standing()
    assert standing is not None
    assert (standing.life, standing.ended, standing.of_this_life, standing.attempts(0)) == (2, False, [], 1)
    assert standing.usd(time.time()) == 0.0


@pytest.mark.parametrize("jump_seconds", [-86_400.0, 86_400.0])
def test_a_clock_that_jumps_moves_no_limit(jump_seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    book = begun()
    book.intended(ORDER, "aws")
    standing = book.standing()
    assert standing is not None
    meter = Meter(BOOK, CloudOptions(max_hours=4.0), standing)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump_seconds)
    assert not meter.is_nearly_over()
    assert 4 * 3600 - 60 < meter.remaining_seconds <= 4 * 3600


def test_a_dearer_machine_gets_less_time_for_the_same_money() -> None:
    """The first one was $10 an hour and went after $15; the next one costs $25."""
    standing = begun().standing()
    assert standing is not None
    meter = Meter(BOOK, CloudOptions(max_cost=40.0), standing)
    meter.priced(10.0, 0.0)
    assert 4 * 3600 - 1 < meter.remaining_seconds <= 4 * 3600
    meter.priced(25.0, 15.0)
    assert 3600 - 1 < meter.remaining_seconds <= 3600
    meter.priced(25.0, 41.0)
    assert meter.is_nearly_over()
    both = Meter(BOOK, CloudOptions(max_cost=40.0, max_hours=2.0), standing)
    both.priced(10.0, 0.0)
    assert 2 * 3600 - 1 < both.remaining_seconds <= 2 * 3600


def test_the_estimate_under_the_limit_and_over_it() -> None:
    plan = {"billed_hours": 1.5}
    told = estimate(OFFER, 2, plan, CloudOptions(max_cost=100.0))
    assert (told.usd, told.limit_hours) == (60.0, 2.5)
    assert affordable([OFFER], 2, plan, CloudOptions(max_cost=100.0)) == [OFFER]
    with pytest.raises(BadInput) as caught:
        affordable([OFFER], 2, plan, CloudOptions(max_cost=50.0))
    assert "$60" in caught.value.message
    assert caught.value.key == "--max-cost"


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_cost", 0), ("max_hours", "4"), ("output", "ftp://x"), ("client_address", "here"), ("disk_gib", 1)],
)
def test_an_option_that_cannot_be_meant_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(BadInput) as caught:
        read_options("aws", {key: value})
    assert caught.value.key == f"launchers.aws.{key}"


def test_user_data_arms_the_end_before_anything_else_and_holds_one_secret() -> None:
    made = keys.make_keys(ORDER.run_id)
    script = user_data(ORDER.run_id, 3600, made)
    lines = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert lines[0].startswith("setsid sh -c 'sleep 3600; shutdown -h now")
    assert made.host_private.strip() in script
    assert made.login_file.read_text().strip() not in script
    assert HIDDEN_KEY in user_data(ORDER.run_id, 3600, None)


def test_keys_are_for_their_owner_alone_and_go_with_the_run() -> None:
    made = keys.make_keys(ORDER.run_id)
    assert made.login_file.stat().st_mode & 0o777 == 0o600
    assert keys.make_keys(ORDER.run_id) == made
    keys.remove_keys(ORDER.run_id)
    assert keys.keys_of(ORDER.run_id) is None
    assert not (ledger.folder() / ORDER.run_id).exists()


class Stubborn:
    """A provider whose machine does not go."""

    def find(self, run_id: str | None = None) -> list[Instance]:
        return [replace(INSTANCE, state="stopping")]

    def destroy(self, instance: Instance) -> None:
        return


def test_survivors_are_named_with_their_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teardown, "GONE_SECONDS", 0.0)
    book = begun()
    book.intended(ORDER, "aws")
    book.created(INSTANCE)
    with pytest.raises(StillBilled) as caught:
        teardown.destroy_all(Market({"aws": Stubborn()}, book), ORDER.run_id, "done", 0.0, lambda words: None)  # type: ignore[dict-item]
    assert caught.value.exit_code == 6
    assert "i-1" in caught.value.message
    assert "LINK" in caught.value.message
    assert state(book) == "destroying"


class Speechless(Stubborn):
    """A provider that believes no key for some time."""

    def __init__(self, times: int) -> None:
        self.times = times

    def find(self, run_id: str | None = None) -> list[Instance]:
        self.times -= 1
        if self.times >= 0:
            raise NoCredentials("the key has expired")
        return []


def test_who_cannot_ask_does_not_believe_that_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    book = begun()
    book.intended(ORDER, "aws")
    book.created(INSTANCE)
    market = Market({"aws": Speechless(3)}, book)  # type: ignore[dict-item]
    monkeypatch.setattr(teardown, "GONE_SECONDS", 0.0)
    with pytest.raises(StillBilled) as caught:
        teardown.destroy_all(market, ORDER.run_id, "done", 0.0, lambda words: None)
    assert ORDER.name in caught.value.message
    monkeypatch.setattr(teardown, "GONE_SECONDS", 30.0)
    monkeypatch.setattr("dtrain.cloud.market.SETTLE_SECONDS", 0.0)
    teardown.destroy_all(market, ORDER.run_id, "done", 0.0, lambda words: None)
    assert state(book) == "gone"


def test_at_once_outlasts_a_later_wish(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    StopRequest(False).write(paths)
    StopRequest(True).write(paths)
    StopRequest(False).write(paths)
    assert StopRequest.read(paths) == StopRequest(True)
