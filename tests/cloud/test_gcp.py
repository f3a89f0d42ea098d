"""Compute Engine through its official client, against a server of ours over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from dtrain_launchers.gcp import Gcp

from dtrain.cloud import provider as api
from dtrain.cloud.provider import Need, Offer, Order
from dtrain.errors import BadInput
from tests.cloud.gcp_server import GcpServer, error_body
from tests.cloud.served import HTML, Fault

RUN = "20261123-191500-k3f9"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample dtrain"
A100 = Offer("gcp", "us-central1", "a2-highgpu-1g", "a100-40gb", 1, 3.673, zone="us-central1-a")


@pytest.fixture
def server() -> Iterator[GcpServer]:
    served = GcpServer()
    served.start()
    yield served
    served.stop()


@pytest.fixture
def gcp(server: GcpServer, monkeypatch: pytest.MonkeyPatch) -> Gcp:
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", f"{server.url}/compute/v1/")
    return Gcp({"project_id": "my-project"})


def order(offer: Offer = A100, **changed: Any) -> Order:
    made = Order(RUN, 0, 1, offer, "#!/bin/sh\necho hello\n", KEY, "203.0.113.7/32", 3600.2)
    return replace(made, **changed)


def test_what_is_sent_is_what_a_dry_run_prints(gcp: Gcp, server: GcpServer) -> None:
    for wanted in (
        order(),
        order(replace(A100, spot=True), attempt=2),
        order(attempt=3, nodes=2),
        order(node=1, nodes=2),
    ):
        server.log.clear()
        gcp.create(wanted)
        sent = [asked.as_json() for asked in server.log if asked.method == "POST" and "/operations/" not in asked.path]
        assert json.loads(json.dumps(gcp.requests(wanted))) == sent


def test_the_machine_ends_itself_and_opens_to_one_address_only(gcp: Gcp) -> None:
    opened, shut, machine = (request["body"] for request in gcp.requests(order(replace(A100, spot=True))))
    assert machine["scheduling"] == {
        "provisioningModel": "SPOT", "onHostMaintenance": "TERMINATE", "automaticRestart": False,
        "instanceTerminationAction": "DELETE", "maxRunDuration": {"seconds": "3601"},
    }  # fmt: skip
    assert machine["disks"][0]["autoDelete"] is True
    assert machine["labels"] == {"dtrain": RUN, "dtrain-node": "0", "dtrain-attempt": "1"}
    assert (opened["sourceRanges"], opened["allowed"]) == (["203.0.113.7/32"], [{"IPProtocol": "tcp", "ports": ["22"]}])
    assert shut["denied"] == [{"IPProtocol": "all"}]
    assert opened["priority"] < shut["priority"] < 65_534
    assert machine["tags"]["items"][0:1] == opened["targetTags"] == shut["targetTags"]


def test_nodes_of_one_run_are_placed_together_and_reach_each_other(gcp: Gcp, server: GcpServer) -> None:
    for node in (0, 1):
        gcp.create(order(node=node, nodes=2))
    gcp.find(RUN)
    found = {instance.node: instance for instance in gcp.find(RUN)}
    assert all(found[node].private_address for node in (0, 1))
    near = next(body for name, body in server.firewalls.items() if name.endswith("n1-a1-near"))
    assert near["sourceTags"] == [f"dtrain-{RUN}"]
    for instance in found.values():
        gcp.destroy(instance)
    gcp.tidy(RUN)
    gcp.tidy(RUN)
    assert (server.machines(), server.leftovers()) == ([], [])


def test_a_machine_from_offer_to_nothing(gcp: Gcp, server: GcpServer) -> None:
    offers = gcp.offers(Need("a100-40gb", 1, regions=("us-central1",)))
    assert [offer.zone for offer in offers] == ["us-central1-a", "us-central1-b"]
    made = gcp.create(order(offers[1]))
    assert (made.state, made.zone, made.address) == ("starting", "us-central1-b", None)
    gcp.find(RUN)
    (found,) = gcp.find(RUN)
    assert (found.state, found.address, found.user, found.id) == ("running", "203.0.113.9", "root", made.id)
    assert [instance.name for instance in gcp.find()] == [found.name]
    assert gcp.find("20261123-000000-aaaa") == []
    gcp.create(order(run_id="20261123-191500-k3fa"))
    others = server.leftovers()[2:]
    gcp.destroy(found)
    gcp.destroy(found)
    assert gcp.find(RUN) == []
    gcp.tidy(RUN)
    assert server.leftovers() == others, "what is another run's stays"


def test_the_same_order_twice_is_one_machine(gcp: Gcp, server: GcpServer) -> None:
    """The answer to the first create is lost after it worked."""
    server.faults.append(Fault("POST", "/instances$", performed=True, cut=True))
    with pytest.raises(api.OutcomeUnknown):
        gcp.create(order())
    again = gcp.create(order())
    assert server.created == [order().name]
    assert [instance.id for instance in gcp.find(RUN)] == [again.id]


def test_an_order_that_google_forgot_gives_its_machine_too(gcp: Gcp, server: GcpServer) -> None:
    """Request ids are remembered for a while only; names are not given twice."""
    made = gcp.create(order())
    server.by_request_id.clear()
    assert gcp.create(order()).id == made.id
    assert server.created == [order().name]


OPERATION_ERRORS = [
    ("ZONE_RESOURCE_POOL_EXHAUSTED", "The zone does not have enough resources available", api.NoCapacity),
    ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "currently unavailable in the zone", api.NoCapacity),
    ("QUOTA_EXCEEDED", "Quota 'GPUS_ALL_REGIONS' exceeded.  Limit: 0.0 globally.", api.QuotaReached),
    ("PERMISSIONS_ERROR", "Required 'compute.disks.create' permission for 'projects/my-project'", api.NoRights),
    ("RESOURCE_NOT_FOUND", "The resource 'zones/us-central1-a/acceleratorTypes/x' was not found", api.NoSuchMachine),
    ("SOMETHING_NEW", "that nobody has seen", api.ProviderError),
]


@pytest.mark.parametrize(("code", "message", "kind"), OPERATION_ERRORS, ids=lambda value: str(value)[:24])
def test_what_a_failed_operation_says(
    gcp: Gcp, server: GcpServer, code: str, message: str, kind: type[api.ProviderError]
) -> None:
    """HTTP says 200 to all of them; slow ones are waited for."""
    server.fail_next.append((code, message))
    server.looks_until_done = 1
    with pytest.raises(kind) as caught:
        gcp.create(order(nodes=2))
    assert type(caught.value) is kind
    assert message.split("'")[0][:20] in caught.value.message
    assert caught.value.fix
    assert (server.machines(), server.leftovers()) == ([], [])


NO_RIGHT = "Required 'compute.instances.create' permission for 'projects/p'"
NOT_ENABLED = "Compute Engine API has not been used in project 1"
NOT_PAID = "The billing account for the owning project is disabled in state absent"
NO_IMAGE = "Invalid value for field 'resource.disks[0].initializeParams.sourceImage'"
HTTP_ERRORS: list[tuple[int, Any, type[api.ProviderError], str]] = [
    (403, error_body(403, "forbidden", NO_RIGHT), api.NoRights, "compute.instances.create"),
    (403, error_body(403, "accessNotConfigured", NOT_ENABLED), api.NoRights, "Compute Engine API"),
    (403, error_body(403, "rateLimitExceeded", "Rate Limit Exceeded"), api.Throttled, "Rate"),
    (429, error_body(429, "rateLimitExceeded", "Quota exceeded for 'Queries'"), api.Throttled, "Queries"),
    (403, error_body(403, "forbidden", NOT_PAID), api.AccountClosed, "billing"),
    (401, error_body(401, "authError", "Invalid Credentials"), api.NoCredentials, "credentials"),
    (400, error_body(400, "invalid", NO_IMAGE), api.ProviderError, "sourceImage"),
    (503, error_body(503, "backendError", "Backend Error"), api.OutcomeUnknown, "503"),
    (502, HTML, api.OutcomeUnknown, "502"),
    (200, HTML, api.OutcomeUnknown, "read"),
]


@pytest.mark.parametrize(("status", "body", "kind", "says"), HTTP_ERRORS, ids=lambda value: str(value)[:12])
def test_what_http_says(
    gcp: Gcp, server: GcpServer, status: int, body: Any, kind: type[api.ProviderError], says: str
) -> None:
    server.faults.append(Fault("POST", "/instances$", status=status, body=body))
    with pytest.raises(kind) as caught:
        gcp.create(order())
    assert type(caught.value) is kind
    assert says in caught.value.message
    assert "\n" not in caught.value.message
    assert server.machines() == []


@pytest.mark.parametrize("body", [HTML, b""], ids=["HTML", "nothing"])
def test_a_list_that_cannot_be_read_is_no_empty_list(gcp: Gcp, server: GcpServer, body: bytes) -> None:
    server.faults.append(Fault("GET", "aggregated/instances", body=body))
    with pytest.raises(api.ProviderDown):
        gcp.find()


def test_a_zone_or_region_without_the_machine(gcp: Gcp) -> None:
    with pytest.raises(api.NoSuchMachine, match="europe-west4 has a3-highgpu-8g"):
        gcp.offers(Need("h100", 8, regions=("europe-west4",)))
    with pytest.raises(api.NoSuchMachine, match="4090"):
        gcp.offers(Need("4090", 1))
    with pytest.raises(api.NoSuchMachine, match="does not exist in zone"):
        gcp.create(order(replace(A100, zone="asia-east1-c")))


def test_a_machine_whose_price_a_person_told(gcp: Gcp) -> None:
    """Then nobody has asked Google for its zone."""
    told = Offer("gcp", "us-central1-b", "a2-highgpu-1g", "a100-40gb", 1, 3.0)
    made = gcp.create(order(told))
    assert (made.region, made.zone) == ("us-central1", "us-central1-b")
    with pytest.raises(api.NoSuchMachine, match="us-central1, which is no zone"):
        gcp.requests(order(replace(told, region="us-central1")))


def test_prices_name_their_date_and_source(gcp: Gcp) -> None:
    (spot,) = gcp.offers(Need("h100", 1, spot=True))
    assert (spot.usd_per_hour, spot.priced_on, spot.spot) == (6.571, "2026-09-26", True)
    (whole,) = gcp.offers(Need("h100", 1))
    assert whole.machine == "a3-highgpu-8g", "one card is sold as spot only"
    (dearest,) = gcp.offers(Need("a100-80gb", 8, spot=True))
    assert "on-demand" in dearest.price_source


def test_google_ends_it_when_its_time_is_over(gcp: Gcp, server: GcpServer) -> None:
    made = gcp.create(order())
    server.instances["us-central1-a", made.name].ends -= 3601
    assert gcp.find() == []


def test_a_new_machine_that_is_not_listed_yet(gcp: Gcp, server: GcpServer) -> None:
    server.hidden_seconds = 3600
    made = gcp.create(order())
    assert gcp.find() == []
    gcp.destroy(made)
    assert server.machines() == []


def test_a_spot_machine_that_is_taken(gcp: Gcp, server: GcpServer) -> None:
    made = gcp.create(order(replace(A100, spot=True)))
    server.shut_down(made.name, "STOPPING")
    (found,) = gcp.find(RUN)
    assert (found.state, found.preempted) == ("stopping", True)


def test_a_stopped_machine_is_found_and_ended(gcp: Gcp, server: GcpServer) -> None:
    """TERMINATED is what Google calls a stopped machine: its disk costs on."""
    made = gcp.create(order())
    server.shut_down(made.name)
    (found,) = gcp.find(RUN)
    assert found.state == "stopped"
    gcp.destroy(found)
    assert server.machines() == []


def test_a_machine_that_never_was_leaves_nothing(gcp: Gcp, server: GcpServer) -> None:
    """Killed between the rules and the machine."""
    server.faults.append(Fault("POST", "/instances$", cut=True))
    with pytest.raises(api.OutcomeUnknown):
        gcp.create(order())
    assert server.leftovers()
    gcp.tidy(RUN)
    assert server.leftovers() == []


def test_no_project_and_no_credentials(
    gcp: Gcp, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, server: GcpServer
) -> None:
    for name in ("GOOGLE_CLOUD_PROJECT", "CLOUDSDK_CORE_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(api.NoCredentials, match="project") as caught:
        Gcp().find()
    assert "GOOGLE_CLOUD_PROJECT" in str(caught.value.fix)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "of-the-environment")
    assert Gcp().find() == []
    assert "of-the-environment" in server.log[-1].path

    monkeypatch.delenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    with pytest.raises(api.NoCredentials, match="absent"):
        Gcp().find()


def test_nobody_listens(gcp: Gcp, server: GcpServer) -> None:
    server.stop()
    with pytest.raises(api.ProviderDown):
        gcp.create(order())


def test_an_option_that_is_none() -> None:
    with pytest.raises(BadInput) as caught:
        Gcp({"projekt": "x"})
    assert (caught.value.key, "project" in str(caught.value.allowed)) == ("launchers.gcp.projekt", True)


def test_a_rule_that_cannot_be_made_costs_nothing(gcp: Gcp, server: GcpServer) -> None:
    """Nobody could log in: the machine is not ordered at all."""
    server.fail_next_rule.append(("QUOTA_EXCEEDED", "Quota 'FIREWALLS' exceeded.  Limit: 100.0 globally."))
    with pytest.raises(api.QuotaReached, match="FIREWALLS"):
        gcp.create(order())
    assert (server.created, server.machines(), server.leftovers()) == ([], [], [])


def test_an_operation_that_cannot_be_asked_for_is_no_refusal(gcp: Gcp, server: GcpServer) -> None:
    server.faults.append(Fault("POST", r"/zones/.*/wait$", status=502, body=HTML))
    made = gcp.create(order())
    assert [found.id for found in gcp.find(RUN)] == [made.id]


def test_what_is_not_for_others_is_in_no_error_and_no_dry_run(gcp: Gcp, server: GcpServer, tmp_path: Any) -> None:
    told = json.dumps(gcp.requests(order()))
    assert "private_key" not in told
    assert all("Authorization" not in asked.headers for asked in server.log)
