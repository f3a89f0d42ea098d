"""Vast over HTTP, against a server of ours that Vast's own client accepts, too."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from dtrain_launchers.vast import Vast

from dtrain.cloud import provider as api
from dtrain.cloud.choose import Choice
from dtrain.cloud.ledger import Standing
from dtrain.cloud.meter import Meter
from dtrain.cloud.options import CloudOptions
from dtrain.cloud.order_book import OrderBook
from dtrain.cloud.provider import Need, Offer, Order
from dtrain.errors import BadInput
from tests.cloud import oracle
from tests.cloud.served import HTML, Fault
from tests.cloud.vast_server import VastServer

RUN = "20261123-191500-k3f9"
KEY = "vast-0123456789-secret"
H100 = Offer("vast", "SE", "1x H100 SXM", "h100", 1, 2.10, zone="host 77", data={"ask_id": 12, "machine_id": 77})
USER_DATA = '#!/bin/sh\necho "it\'s first"\n'


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[VastServer]:
    served = VastServer(KEY)
    served.start()
    monkeypatch.setenv("VAST_URL", served.url)
    monkeypatch.setenv("VAST_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield served
    served.stop()


def order(offer: Offer = H100, node: int = 0, run: str = RUN) -> Order:
    return Order(run, node, 1, offer, USER_DATA, "ssh-ed25519 AAAA dtrain", "203.0.113.7/32", 3600.0, 80)


def test_it_is_a_provider() -> None:
    assert isinstance(Vast(), api.Provider)


def test_offers_are_the_cheapest_of_the_very_card(server: VastServer) -> None:
    found = Vast().offers(Need("h100", 1))
    assert [(one.data["ask_id"], one.usd_per_hour) for one in found] == [(12, 2.10), (11, 2.40)]
    assert all(one.capacity and one.priced_on == "live" for one in found)
    assert {(one.region, one.machine) for one in found} == {("SE", "1x H100 SXM")}, "one may follow the other"
    assert len({one.zone for one in found}) == 2
    [small] = Vast().offers(Need("a100-40gb", 1))
    [large] = Vast().offers(Need("a100-80gb", 1))
    assert (small.usd_per_hour, large.usd_per_hour) == (0.70, 1.10), "one name at Vast, told apart by memory"
    [eight] = Vast().offers(Need("h100", 8, regions=("SE",)))
    assert eight.gpus == 8
    assert Vast().offers(Need("h100", 1, spot=True))[0].usd_per_hour == 1.05


@pytest.mark.parametrize(
    ("need", "kind", "words"),
    [
        (Need("l4", 1), api.NoSuchMachine, "no l4"),
        (Need("cpu", 0), api.NoSuchMachine, "no cpu"),
        (Need("h100", 2), api.NoCapacity, "nobody"),
        (Need("4090", 1), api.NoCapacity, "nobody"),
        (Need("h100", 1, regions=("Iceland",)), api.NoCapacity, "nobody"),
    ],
)
def test_what_it_does_not_have_is_said(
    server: VastServer, need: Need, kind: type[api.ProviderError], words: str
) -> None:
    with pytest.raises(kind, match=words) as refused:
        Vast().offers(need)
    assert refused.value.elsewhere


def test_a_host_that_is_often_down_is_taken_only_when_it_is_wanted(server: VastServer) -> None:
    [offer] = Vast({"min_reliability": 0.5}).offers(Need("4090", 1))
    assert offer.usd_per_hour == 0.35
    with pytest.raises(BadInput, match="not a value"):
        Vast({"min_reliability": 98})


def test_what_is_sent_is_what_was_shown(server: VastServer) -> None:
    provider = Vast()
    shown = provider.requests(order())
    assert shown == provider.requests(order()), "pure"
    assert not server.log
    provider.create(order())
    assert [asked.as_json() for asked in server.log] == list(shown)
    assert json.loads(json.dumps(shown)) == shown
    assert KEY not in json.dumps(shown)
    assert "price" not in shown[0]["body"]
    bid = provider.requests(order(replace(H100, spot=True, usd_per_hour=1.05)))
    assert bid[0]["body"]["price"] == 1.05


def test_a_machine_lives_from_its_order_to_its_end(server: VastServer) -> None:
    provider = Vast()
    made = provider.create(order())
    provider.create(order(replace(H100, data={"ask_id": 11}), run="20261124-000000-aaaa"))
    theirs = {**server.instances[int(made.id)], "id": 1, "label": None}
    server.instances[1] = theirs
    assert [(one.state, one.address) for one in provider.find(RUN)] == [("starting", None)]
    assert [(one.state, one.address) for one in provider.find(RUN)] == [("starting", None)]
    [up] = provider.find(RUN)
    assert (up.region, up.zone, up.machine) == (made.region, made.zone, made.machine)
    assert (up.id, up.state, up.address, up.port, up.user) == (made.id, "running", "203.0.113.8", 41022, "root")
    server.instances[int(made.id)]["actual_status"] = "offline"
    assert provider.find(RUN)[0].state == "running", "a host that is not seen for a moment may train on"
    server.instances[int(made.id)] |= {"actual_status": "exited", "is_bid": True}
    [ended] = provider.find(RUN)
    assert (ended.state, ended.preempted, ended.address) == ("stopped", True, None)
    assert {one.run_id for one in provider.find()} == {RUN, "20261124-000000-aaaa"}
    provider.destroy(up)
    provider.destroy(up)
    assert provider.find(RUN) == []
    assert len(server.instances) == 2


def test_the_relay_is_taken_where_the_host_opens_no_port(server: VastServer) -> None:
    made = Vast().create(order())
    row = server.instances[int(made.id)]
    row |= {"actual_status": "running", "ssh_host": "ssh4.vast.ai", "ssh_port": 31022}
    [seen] = Vast().find(RUN)
    assert (seen.address, seen.port) == ("ssh4.vast.ai", 31022)


def test_more_machines_than_a_page_holds_are_all_found(server: VastServer) -> None:
    made = Vast().create(order())
    for number in range(1, 61):
        server.instances[number] = {**server.instances[int(made.id)], "id": number, "label": f"theirs-{number}"}
    assert [one.id for one in Vast().find()] == [made.id]
    assert len(server.sent("GET")) == 3


def test_an_offer_that_somebody_took_a_low_bid_an_empty_account(server: VastServer) -> None:
    provider = Vast()
    with pytest.raises(api.NoCapacity, match="bid"):
        provider.create(order(replace(H100, spot=True, usd_per_hour=0.20)))
    server.credit = 1.0
    with pytest.raises(api.AccountClosed, match="credit"):
        provider.create(order())
    server.taken.add(12)
    with pytest.raises(api.NoCapacity, match="not available"):
        provider.create(order())
    assert not server.instances


FORBIDDEN = {"success": False, "error": "permission_denied", "msg": "this key may not do instance_write"}
ANY = r"/api/"
FAULTS = [
    (401, {"success": False, "error": "auth_error", "msg": "no"}, {}, api.NoCredentials, api.NoCredentials),
    (403, FORBIDDEN, {}, api.NoRights, api.NoRights),
    (200, {"success": False, "msg": "Your account is suspended"}, {}, api.AccountClosed, api.AccountClosed),
    (429, {"msg": "slow down"}, {"headers": {"Retry-After": "3"}}, api.Throttled, api.Throttled),
    (429, {"error": "search_quota_exceeded"}, {}, api.QuotaReached, api.QuotaReached),
    (502, HTML, {}, api.ProviderDown, api.OutcomeUnknown),
    (200, HTML, {}, api.ProviderDown, api.OutcomeUnknown),
    (0, None, {"cut": True}, api.ProviderDown, api.OutcomeUnknown),
    (0, None, {"cut": True, "performed": True}, api.ProviderDown, api.OutcomeUnknown),
]


@pytest.mark.parametrize(("status", "body", "more", "looking", "ordering"), FAULTS)
def test_each_no_and_each_silence_has_its_name(
    server: VastServer,
    status: int,
    body: object,
    more: dict[str, object],
    looking: type[api.ProviderError],
    ordering: type[api.ProviderError],
) -> None:
    provider = Vast()
    for method, kind, call in (("GET", looking, provider.find), ("PUT", ordering, lambda: provider.create(order()))):
        server.faults = [Fault(method, ANY, status, body, **more)]  # type: ignore[arg-type]
        with pytest.raises(kind) as refused:
            call()
        assert type(refused.value) is kind
        assert refused.value.fix
        assert KEY not in str(refused.value)
    assert len(provider.find(RUN)) == int(bool(more.get("performed"))), "made all the same: found by its name"


def test_nothing_listens_there(server: VastServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAST_URL", "http://127.0.0.1:9")
    with pytest.raises(api.ProviderDown, match="no connection"):
        Vast().create(order())
    monkeypatch.delenv("VAST_API_KEY")
    with pytest.raises(api.NoCredentials, match="VAST_API_KEY is not set"):
        Vast().find()


def test_a_container_ends_its_own_rental(server: VastServer, tmp_path: Path) -> None:
    """What the container is told to run, run by a real shell; then `shutdown` ends it with the container's own key."""
    made = Vast().create(order())
    script = str(server.instances[int(made.id)]["onstart"])
    moved = script.replace("| sh", f"| sed 's#/usr/local/sbin#{tmp_path}#; s#/root/#{tmp_path}/#' | sh")
    done = subprocess.run(moved, shell=True, capture_output=True, text=True, timeout=30)
    assert "it's first" in done.stdout
    env = {"PATH": os.environ["PATH"], "CONTAINER_ID": made.id, "CONTAINER_API_KEY": "scoped-to-the-instance"}
    shutdown = subprocess.Popen([str(tmp_path / "shutdown"), "-h", "now"], env=env)
    try:
        for _ in range(100):
            if not server.instances:
                break
            with pytest.raises(subprocess.TimeoutExpired):
                shutdown.wait(0.1)
    finally:
        shutdown.kill()
        shutdown.wait()
    assert Vast().find() == []


@oracle.needs("vast")
def test_their_own_client_reads_every_answer(server: VastServer) -> None:
    script = str(Path(__file__).with_name("vast_oracle.py"))
    env = {**os.environ, "VAST_URL": server.url}
    done = subprocess.run(
        [oracle.interpreter("vast"), script, KEY], env=env, capture_output=True, text=True, timeout=60
    )
    assert "read every answer" in done.stdout, done.stderr


def test_a_taken_offer_and_a_bad_host_lead_to_the_next_host(server: VastServer) -> None:
    """As the road chooses, without --anywhere: another host of the same country."""
    refused, bad = a_choice(), a_choice()
    first = refused.next()
    refused.refuse(first, api.NoCapacity("somebody took it"))
    assert (first.data["ask_id"], refused.next().data["ask_id"]) == (12, 11)
    bad.note_bad(Vast().create(order(bad.next())))
    server.taken.clear()  # given back: on offer again, and still the cheapest
    assert bad.next().data["ask_id"] == 11


def a_choice() -> Choice:
    book = OrderBook(RUN, "vast", {}, "h100", 1, 1, "cuda", (), {"billed_hours": 0.1}, {}, (), 0.1, 1.0)
    meter = Meter(book, CloudOptions(), Standing(RUN, "vast", "/", {}, 1, False, False))
    return Choice(book, CloudOptions(), {"vast": Vast()}, meter)
