"""`dtrain prices`: what providers tell today comes before the shipped table, dated; one that fails does not stop it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dtrain_launchers.runpod import RunpodLauncher
from dtrain_launchers.vast import VastLauncher

from dtrain.cloud import price_table
from dtrain.cloud.provider import Need, NoSuchMachine, Offer, ProviderError
from dtrain.errors import BadInput, LauncherRefused
from dtrain.hardware import prices
from dtrain.hardware.profiles import resolve_profile
from tests.cloud.runpod_server import RunpodServer
from tests.cloud.served import HTML, Fault
from tests.cloud.vast_server import VastServer
from tests.e2e.cli import Place

KEY = "a-key"


class ByNeed:
    """A provider that is asked machine by machine, as most are: eight H100 at a live price, an A100 at a listed one."""

    def offers(self, need: Need) -> list[Offer]:
        if (need.gpu, need.gpus) == ("h100", 8):
            regions = (("far", 40.0), ("near", 30.0))
            return [Offer("byneed", name, "big", "h100", 8, usd, priced_on="live") for name, usd in regions]
        if need.gpu == "a100-80gb":
            return [Offer("byneed", "near", "old", "a100-80gb", 8, 20.0, priced_on="2026-01-01")]
        raise NoSuchMachine("none")


class Down:
    def offers(self, need: Need) -> list[Offer]:
        raise ProviderError("an HTML page came")


class Launcher:
    def __init__(self, provider: Any) -> None:
        self.made = provider

    def options_of(self, told: object) -> object:
        return told

    def provider(self, options: object) -> Any:
        return self.made


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[RunpodServer, VastServer]]:
    runpod, vast = RunpodServer(KEY), VastServer(KEY)
    for served, url, key in ((runpod, "RUNPOD_API_BASE_URL", "RUNPOD_API_KEY"), (vast, "VAST_URL", "VAST_API_KEY")):
        served.start()
        monkeypatch.setenv(url, served.url)
        monkeypatch.setenv(key, KEY)
    monkeypatch.setenv("DTRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    others = {"byneed": Launcher(ByNeed()), "down": Launcher(Down())}
    found = {"runpod": RunpodLauncher(), "vast": VastLauncher(), **others}
    monkeypatch.setattr(price_table, "cloud_launchers", lambda: found)
    yield runpod, vast
    runpod.stop()
    vast.stop()


def states(asked: list[price_table.Asked]) -> dict[str, str]:
    return {one.provider: one.as_json()["state"] for one in asked}


def test_live_prices_come_before_the_shipped_ones(servers: tuple[RunpodServer, VastServer]) -> None:
    before = prices.prices()
    runpod, _ = servers
    said: list[str] = []
    asked = price_table.refresh(say=said.append)
    assert states(asked) == {"byneed": "asked", "down": "failed", "runpod": "asked", "vast": "asked"}
    assert "down: an HTML page came" in said
    assert len(runpod.log) == 1
    own = {(row.provider, row.gpu, row.kind): row for row in prices.own_prices()}
    assert own["runpod", "4090", "marketplace"].up_to == 4
    assert own["vast", "h100", "marketplace"].usd_per_hour == 2.40, "the middle of two"
    assert own["byneed", "h100", "on-demand"].usd_per_hour == 30.0, "the cheapest region"
    assert ("byneed", "a100-80gb", "on-demand") not in own, "a price of some table is no live one"
    now = prices.prices()
    assert not [row for row in now if row.provider == "runpod" and row.priced_on == "2026-11-09" and row.gpu == "h100"]
    assert [row for row in now if row.provider == "lambda"] == [row for row in before if row.provider == "lambda"]
    [cheapest, *_] = [offer for offer in prices.offers(resolve_profile("h100x8")) if offer.provider == "byneed"]
    assert (cheapest.usd_per_hour, cheapest.source) == (30.0, "asked: byneed")


def test_who_fails_keeps_its_older_rows(
    servers: tuple[RunpodServer, VastServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    price_table.refresh()
    rows = prices.own_prices()
    runpod, vast = servers
    runpod.faults = [Fault("POST", "graphql", 403, {"error": "no"})]
    vast.faults = [Fault("POST", "bundles", 403, HTML)]
    monkeypatch.delenv("VAST_API_KEY")
    assert states(price_table.refresh()) == {
        "byneed": "asked", "down": "failed", "runpod": "failed", "vast": "skipped",
    }  # fmt: skip
    assert sorted(map(str, prices.own_prices())) == sorted(map(str, rows))


def test_nobody_answers_an_unknown_provider_a_broken_table(
    servers: tuple[RunpodServer, VastServer], tmp_path: Path
) -> None:
    with pytest.raises(LauncherRefused, match="no provider told a price"):
        price_table.refresh("down")
    with pytest.raises(BadInput, match="no provider of that name"):
        price_table.refresh("nobody")
    assert not (tmp_path / "home" / "prices.json").exists()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "prices.json").write_text('{"prices": [{"provider": "x"}]}')
    with pytest.raises(BadInput, match="cannot be read"):
        prices.prices()


def test_the_command(servers: tuple[RunpodServer, VastServer], tmp_path: Path) -> None:
    place = Place(tmp_path, {"RUNPOD_API_BASE_URL": servers[0].url, "RUNPOD_API_KEY": KEY})
    told = place.dtrain("prices", "refresh", "runpod", "--json")
    assert told.document["providers"] == [{"provider": "runpod", "state": "asked", "prices": 5, "reason": None}]
    rows = place.dtrain("prices", "--gpu", "a100", "--json").document["prices"]
    assert [row["usd_per_hour"] for row in rows if row["asked_from_here"]] == [1.39, 1.79]
    assert "2026-11-09" in place.dtrain("prices").out
    plan = place.dtrain("plan", str(Path("configs/storyteller.yaml").resolve()), "--profile", "4090x1", "--json")
    assert plan.document["cost_usd"]["provider"] == "runpod"
    assert place.dtrain("prices", "--gpu", "h10").code == 2
    refused = place.dtrain("prices", "refresh", "runpod", "--json", env={"RUNPOD_API_KEY": "wrong"})
    assert refused.code == 5
    assert json.loads(refused.out)["error"]["message"] == "no provider told a price"
