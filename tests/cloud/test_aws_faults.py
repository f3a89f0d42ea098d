"""What AWS may answer, over HTTP: each told apart in a line, nothing made twice, another machine where one is bad."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from dtrain_launchers.aws import Aws, AwsLauncher

from dtrain.cloud.collect import collect, survey
from dtrain.cloud.keys import RunKeys
from dtrain.cloud.ledger import Ledger
from dtrain.cloud.machines import Machines, Terms, order_of
from dtrain.cloud.market import Market
from dtrain.cloud.options import CloudOptions
from dtrain.cloud.provider import (
    AccountClosed,
    Need,
    NoCapacity,
    NoCredentials,
    NoRights,
    NoSuchMachine,
    Offer,
    Order,
    OutcomeUnknown,
    ProviderError,
    QuotaReached,
    Throttled,
)
from dtrain.cloud.teardown import destroy_all
from dtrain.errors import LauncherRefused
from dtrain.launch.api import Job
from dtrain.launch.create import new_id
from dtrain.launch.ending import Ending
from dtrain.paths import RunPaths
from tests.cloud.aws_world import REGION, AwsWorld, Fault
from tests.cloud.datacenter import Datacenter
from tests.waiting import wait_until

NewJob = Callable[..., Job]


@pytest.fixture(scope="module")
def world(datacenter: Datacenter) -> Iterator[AwsWorld]:
    made = AwsWorld(datacenter)
    yield made
    made.close()


@pytest.fixture
def only_listed(cloud_job: NewJob, world: AwsWorld) -> Iterator[AwsWorld]:
    """No machine boots: only what the provider says counts."""
    world.hardware = False
    yield world
    world.hardware = True


def an_order(nodes: int = 1, machine: str = "c5.xlarge", spot: bool = False, **more: Any) -> Order:
    keys = RunKeys(Path("/nowhere"), "ssh-ed25519 AAAA", "a host key", "ssh-ed25519 BBBB")
    terms = Terms(new_id(), nodes, CloudOptions(own=more), keys, "203.0.113.7/32", "aws")
    return order_of(terms, 0, 1, Offer("aws", REGION, machine, "cpu", 0, 0.2, spot), 3600.0)


def a_market(order: Order, output: Path = Path("/nowhere")) -> Market:
    """With a ledger that was begun: it knows the regions, so not every one is asked."""
    ledger = Ledger(order.run_id)
    ledger.begun("aws", output)
    return Market({"aws": Aws()}, ledger)


ANSWERS = [
    ("InsufficientInstanceCapacity", NoCapacity, "no c5.xlarge free in us-east-1"),
    ("VcpuLimitExceeded", QuotaReached, "may not run c5.xlarge"),
    ("Unsupported", NoSuchMachine, "us-east-1 has no c5.xlarge"),
    ("UnauthorizedOperation", NoRights, "may not do this"),
    ("AuthFailure", NoCredentials, "does not believe"),
    ("OptInRequired", AccountClosed, "cannot rent"),
    ("RequestLimitExceeded", Throttled, "patience"),
    ("html", OutcomeUnknown, "502"),
    ("cut", OutcomeUnknown, "no answer"),
]


@pytest.mark.parametrize(("code", "kind", "words"), ANSWERS)
def test_each_refusal_is_told_apart_in_one_line(
    code: str, kind: type[ProviderError], words: str, only_listed: AwsWorld
) -> None:
    only_listed.faults.append(Fault("RunInstances", code))
    with pytest.raises(kind) as caught:
        Aws().create(an_order())
    assert type(caught.value) is kind
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert only_listed.machines() == []


def test_the_quota_is_named_by_its_code(only_listed: AwsWorld) -> None:
    only_listed.faults.append(Fault("RunInstances", "VcpuLimitExceeded"))
    with pytest.raises(QuotaReached) as caught:
        Aws().create(an_order(machine="p4d.24xlarge"))
    assert "L-417A185B" in str(caught.value.fix)


def test_what_a_dry_run_prints_is_what_is_sent(only_listed: AwsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, str]] = []
    forward = only_listed._forward

    def noted(path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        sent.append(dict(parse_qsl(body.decode())))
        return forward(path, headers, body)

    monkeypatch.setattr(only_listed, "_forward", noted)
    order = an_order(spot=True)
    provider = Aws()
    provider.create(order)
    printed = provider.requests(order)
    assert [one["action"] for one in printed] == [one["Action"] for one in sent]
    run = sent[-1]
    assert run["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert run["ClientToken"] == printed[-1]["parameters"]["ClientToken"] == order.token
    assert run["MetadataOptions.HttpTokens"] == "required"
    assert run["InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior"] == "terminate"
    assert sent[1]["IpPermissions.1.IpRanges.1.CidrIp"] == "203.0.113.7/32"
    assert sent[1]["IpPermissions.1.FromPort"] == sent[1]["IpPermissions.1.ToPort"] == "22"


def test_an_answer_that_is_lost_makes_no_second_machine(only_listed: AwsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    order = an_order()
    monkeypatch.setattr(OutcomeUnknown, "retry_seconds", 0.1)
    only_listed.faults.append(Fault("RunInstances", "lost"))
    made = a_market(order).create(order)
    assert (len(only_listed.created), only_listed.machines()) == (1, [made.id])


def test_a_machine_that_is_not_listed_yet_is_waited_for(only_listed: AwsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    order = an_order()
    market = a_market(order)
    only_listed.hidden_seconds = 1.0
    made = market.create(order)
    seen = [len(market.find("aws", order.run_id))]
    monkeypatch.setattr("dtrain.cloud.market.SETTLE_SECONDS", 10.0)
    found = market.wait_for("aws", order.run_id, order.name)
    assert found is not None
    assert (seen, found.id) == ([0], made.id)


def test_a_machine_that_is_not_listed_yet_is_neither_forgotten_nor_ordered_again(
    only_listed: AwsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keeper that was killed a moment after its create, and another that takes over or ends the run at once."""
    order = an_order()
    market = a_market(order)
    monkeypatch.setattr("dtrain.cloud.market.SETTLE_SECONDS", 10.0)
    only_listed.hidden_seconds = 1.0
    made = market.create(order)
    terms = Terms(order.run_id, 1, CloudOptions(), None, order.client_address, "aws")
    assert [one.id for one in Machines(market, terms).there(may_order=True).values()] == [made.id]
    destroy_all(market, order.run_id, "stopped", 0.1, lambda words: None)
    assert (only_listed.machines(), len(only_listed.created)) == ([], 1)
    standing = market.ledger.standing()
    assert standing is not None
    assert [one.state for one in standing.machines.values()] == ["gone"]


def test_a_machine_that_appears_after_its_run_was_given_up_is_collected(only_listed: AwsWorld, tmp_path: Path) -> None:
    """Its order was never answered, nobody saw it in time, the run was closed; nobody need name it to `dtrain gc`."""
    order = an_order()
    market = a_market(order, tmp_path)
    market.create(order)
    market.ledger.refused(order.name, "the order was never answered")
    market.ledger.ended("refused")
    found = survey().strays
    assert [(one.run_id, one.output) for one in found] == [(order.run_id, str(tmp_path))]
    collect(found[0], False, lambda words: None)
    assert only_listed.machines() == []
    assert survey().strays == []


def test_throttling_and_html_are_waited_out(only_listed: AwsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Throttled, "retry_seconds", 0.1)
    monkeypatch.setattr("dtrain.cloud.provider.ProviderDown.retry_seconds", 0.1)
    order = an_order()
    market = a_market(order)
    market.create(order)
    only_listed.faults += [Fault("DescribeInstances", "RequestLimitExceeded"), Fault("DescribeInstances", "html")]
    found = market.find("aws", order.run_id)
    assert [one.name for one in found] == [order.name]


def test_several_nodes_are_placed_together_and_reach_each_other() -> None:
    printed = {one["action"]: one["parameters"] for one in Aws().requests(an_order(2, "p4d.24xlarge"))}
    run = printed["RunInstances"]
    assert printed["CreatePlacementGroup"]["Strategy"] == "cluster"
    assert run["Placement"]["GroupName"] == printed["CreatePlacementGroup"]["GroupName"]
    assert [one["InterfaceType"] for one in run["NetworkInterfaces"]] == ["efa", "efa-only", "efa-only", "efa-only"]
    each_other = printed["AuthorizeSecurityGroupIngress"]["IpPermissions"][1]
    assert each_other["UserIdGroupPairs"] == [{"GroupId": "SECURITY_GROUP"}]


def test_offers_are_live_and_cheapest_first(only_listed: AwsWorld) -> None:
    """Windows, reserved, dedicated and capacity blocks at $0 stand in AWS's list beside what is meant."""
    found = Aws().offers(Need("a100-80gb", 8))
    assert [(one.region, one.machine, one.gpus, one.usd_per_hour, one.priced_on) for one in found] == [
        ("us-west-2", "p4de.24xlarge", 8, 26.5, "live"), ("us-east-1", "p4de.24xlarge", 8, 27.0, "live")
    ]  # fmt: skip
    told = {(one.machine, one.region): one.usd_per_hour for one in Aws().all_offers()}
    assert told == {
        ("p4de.24xlarge", "us-west-2"): 26.5, ("p4de.24xlarge", "us-east-1"): 27.0, ("p5.48xlarge", "us-east-2"): 54.0
    }  # fmt: skip


@pytest.mark.parametrize("code", ["AccessDeniedException", "html", "cut", None])
def test_without_live_prices_they_are_dated_and_that_is_said(only_listed: AwsWorld, code: str | None) -> None:
    if code is not None:
        only_listed.faults.append(Fault("GetProducts", code))
    (found,) = Aws().offers(Need("a100-80gb", 8, regions=("us-east-1" if code else "eu-west-1",)))
    assert (found.usd_per_hour, found.priced_on) == (27.4471, "2026-11-09")
    assert "; AWS" in found.price_source
    assert code not in ("AccessDeniedException",) or "may not do this" in found.price_source
    assert "\n" not in found.price_source


# --- through the whole road ---------------------------------------------------------------------------------------


def ended(job: Job, launcher: AwsLauncher) -> Ending:
    handle = launcher.submit(job, launcher.render(job))
    wait_until(lambda: launcher.status(handle).state not in ("pending", "running"), 90)
    ending = Ending.read(RunPaths(job.folder))
    assert ending is not None
    return ending


def test_no_capacity_refuses_the_launch_and_rents_nothing(world: AwsWorld, cloud_job: NewJob) -> None:
    world.faults.append(Fault("RunInstances", "InsufficientInstanceCapacity"))
    job, launcher = cloud_job(5), AwsLauncher()
    with pytest.raises(LauncherRefused) as caught:
        launcher.submit(job, launcher.render(job))
    assert "no c5.xlarge free" in caught.value.message
    assert "--anywhere" in str(caught.value.fix)
    assert (world.created, world.machines()) == ([], [])


def test_a_provider_that_answers_html_refuses_the_launch_and_rents_nothing(world: AwsWorld, cloud_job: NewJob) -> None:
    """Whatever became of the order: it is asked for, until it is clear that there is no machine."""
    world.faults.append(Fault("RunInstances", "html", times=9))
    job, launcher = cloud_job(5), AwsLauncher()
    with pytest.raises(LauncherRefused, match="AWS answers 502 in us-east-1: Bad Gateway"):
        launcher.submit(job, launcher.render(job))
    assert (world.created, world.machines()) == ([], [])


def test_anywhere_takes_the_next_region(world: AwsWorld, cloud_job: NewJob) -> None:
    world.faults.append(Fault("RunInstances", "InsufficientInstanceCapacity", region="us-east-1"))
    job = cloud_job(5, options={"anywhere": True, "regions": ["us-east-1", "us-west-2"]})
    assert ended(job, AwsLauncher()).code == 0
    standing = Ledger(job.run_id).standing()
    assert standing is not None
    assert [(one.region, one.state) for one in standing.machines.values()] == [
        ("us-east-1", "refused"), ("us-west-2", "gone")
    ]  # fmt: skip


def test_a_bad_host_is_given_back_and_another_taken(world: AwsWorld, datacenter: Datacenter, cloud_job: NewJob) -> None:
    """The first one's disk is too small for the plan's checkpoints: the gate tells."""
    datacenter.tiny_disks = 1
    plan = {"model": {"parameters": 1_000_000, "trainable_parameters": 1_000_000}}
    job = cloud_job(5, plan=plan, options={"gate": True})
    assert ended(job, AwsLauncher()).code == 0
    standing = Ledger(job.run_id).standing()
    assert standing is not None
    first, second = standing.machines.values()
    assert first.why.startswith("not fit: not fit to train")
    assert (first.state, second.state, world.machines()) == ("gone", "gone", [])
