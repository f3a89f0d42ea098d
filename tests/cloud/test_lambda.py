"""Lambda Cloud over HTTP, against a server of ours that keeps Lambda's limits and its API's description."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dtrain_launchers.lambda_cloud import Lambda
from dtrain_launchers.lambda_pace import Pace

from dtrain.cloud import provider as api
from dtrain.cloud.provider import Need, Offer, Order
from dtrain.errors import BadInput
from tests.cloud import oracle
from tests.cloud.lambda_description import description
from tests.cloud.lambda_server import LambdaServer
from tests.cloud.served import HTML, Fault

RUN = "20261123-191500-k3f9"
KEY = "secret_lambda_0123456789"
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample dtrain"
H100 = Offer("lambda", "us-west-1", "gpu_1x_h100_sxm5", "h100", 1, 4.29)


class Clock:
    """Only sleeping moves it."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> Iterator[LambdaServer]:
    served = LambdaServer(KEY, clock.now)
    served.start()
    yield served
    served.stop()


@pytest.fixture
def cloud(server: LambdaServer, clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lambda:
    monkeypatch.setenv("DTRAIN_HOME", str(tmp_path))
    monkeypatch.setenv("LAMBDA_API_KEY", KEY)
    monkeypatch.setenv("LAMBDA_CLOUD_BASE_URL", server.url)
    return Lambda({}, Pace(KEY, clock.now, clock.sleep))


def order(offer: Offer = H100, **changed: Any) -> Order:
    made = Order(RUN, 0, 1, offer, "#!/bin/sh\necho hello\n", PUBLIC_KEY, "203.0.113.7/32", 3600)
    return replace(made, **changed)


def test_what_is_sent_is_what_a_dry_run_prints(cloud: Lambda, server: LambdaServer) -> None:
    image = "43336648-096d-4cba-9aa2-f9bb7727639d"
    elsewhere = replace(H100, region="us-south-1", machine="gpu_8x_h100_sxm5")
    for wanted in (order(elsewhere), order(image=image), order(attempt=2, image="my-family")):
        server.forget_everything()
        cloud.create(wanted)
        printed = json.dumps(cloud.requests(wanted)).replace("FIREWALL_RULESET", next(iter(server.rulesets), ""))
        assert json.loads(printed) == [one.as_json() for one in server.sent("POST")]
    assert server.sent("POST")[-1].body["image"] == {"family": "my-family"}


def test_a_machine_from_offer_to_nothing(cloud: Lambda, server: LambdaServer) -> None:
    """Active before it has an address, and gone later than asked."""
    offers = cloud.offers(Need("h100", 1))
    assert [(one.region, one.usd_per_hour, one.priced_on, one.capacity) for one in offers] == [
        ("us-east-1", 4.29, "live", True), ("us-west-1", 4.29, "live", True),
    ]  # fmt: skip
    made = cloud.create(order(offers[0]))
    seen = [(one.state, one.address) for _ in range(3) for one in cloud.find(RUN)]
    assert seen == [("starting", None), ("running", None), ("running", "198.51.100.2")]
    (found,) = cloud.find()
    assert (found.id, found.run_id, found.node, found.attempt, found.region) == (made.id, RUN, 0, 1, "us-east-1")
    assert cloud.find("20261123-000000-aaaa") == []
    cloud.destroy(found)
    assert [one.state for one in cloud.find(RUN)] == ["stopping"]
    assert cloud.find(RUN) == []
    cloud.destroy(found)
    other = "dtrain-20261123-191500-k3fa"
    cloud.create(order(run_id=other.removeprefix("dtrain-")))
    cloud.tidy(RUN)
    assert server.leftovers() == [other, f"{other}-us-west-1"], "what is another run's stays"


def test_every_request_and_answer_is_as_lambda_describes_it(cloud: Lambda, server: LambdaServer) -> None:
    server.checked = checks = description()
    test_a_machine_from_offer_to_nothing(cloud, server)
    for status, code, message, _ in LAUNCH_ERRORS[:6]:
        server.fail_next.append((status, code, message))
        with pytest.raises(api.ProviderError):
            cloud.create(order(attempt=2))
    with pytest.raises(api.NoSuchMachine):
        cloud.create(order(replace(H100, machine="gpu_9x_h100"), attempt=3))
    assert checks.checked == len(server.log)
    assert len(checks.seen) == 10


def test_only_the_clients_address_may_log_in(cloud: Lambda) -> None:
    """By Lambda's firewall where there is one, and by the machine itself."""
    _, guard, launch = (one["body"] for one in cloud.requests(order()))
    (rule,) = guard["rules"]
    assert (rule["protocol"], rule["port_range"], rule["source_network"]) == ("tcp", [22, 22], "203.0.113.7/32")
    assert (guard["region"], launch["firewall_rulesets"]) == ("us-west-1", [{"id": "FIREWALL_RULESET"}])
    assert "firewall_rulesets" not in cloud.requests(order(client_address="2001:db8::7/128"))[-1]["body"]
    script = launch["user_data"].splitlines()
    assert script[0] == "#!/bin/sh"
    assert "--dport 22 ! -s 203.0.113.7/32 -j DROP" in script[1]
    assert script[2:] == ["echo hello"]


LAUNCH_ERRORS = [
    (400, "instance-operations/launch/insufficient-capacity", "Not enough capacity.", api.NoCapacity),
    (400, "global/quota-exceeded", "Quota exceeded.", api.QuotaReached),
    (401, "global/invalid-api-key", "API key was invalid, expired, or deleted.", api.NoCredentials),
    (403, "global/account-inactive", "Your account is inactive.", api.AccountClosed),
    (403, "global/invalid-address", "Your billing address is invalid.", api.AccountClosed),
    (400, "global/invalid-parameters", "Invalid request data.", api.ProviderError),
    (403, "global/not-yours", "This key may only read.", api.NoRights),
    (500, "global/internal-error", "An internal server error occurred.", api.OutcomeUnknown),
    (503, "provider/internal-unavailable", "Provider unavailable", api.OutcomeUnknown),
]


@pytest.mark.parametrize(("status", "code", "message", "kind"), LAUNCH_ERRORS, ids=lambda value: str(value)[-24:])
def test_what_a_refused_launch_says(
    cloud: Lambda, server: LambdaServer, status: int, code: str, message: str, kind: type[api.ProviderError]
) -> None:
    server.fail_next.append((status, code, message))
    with pytest.raises(kind) as caught:
        cloud.create(order())
    assert type(caught.value) is kind
    assert code in caught.value.message
    assert message in caught.value.message
    assert caught.value.fix
    assert (server.leftovers() == []) is (kind is not api.OutcomeUnknown), "what may be asked for again keeps its key"


def test_machines_of_one_run_share_its_key_and_its_firewall(cloud: Lambda, server: LambdaServer) -> None:
    """Which stays as long as one of them is up, also where another order is refused."""
    for attempt in (1, 2):
        cloud.create(order(attempt=attempt))
    assert server.leftovers() == [f"dtrain-{RUN}", f"dtrain-{RUN}-us-west-1"]
    assert len(server.sent("POST", "/ssh-keys$")) == len(server.sent("POST", "/firewall-rulesets$")) == 1
    server.fail_next.append((400, "global/quota-exceeded", "Quota exceeded."))
    with pytest.raises(api.QuotaReached):
        cloud.create(order(attempt=3))
    assert server.leftovers() == [f"dtrain-{RUN}-us-west-1"]


def test_an_answer_that_is_lost_is_found_again(cloud: Lambda, server: LambdaServer) -> None:
    """Lambda has no token: a second launch would be a second machine. The name tells."""
    server.faults.append(Fault("POST", "/launch$", performed=True, cut=True))
    with pytest.raises(api.OutcomeUnknown):
        cloud.create(order())
    (found,) = cloud.find(RUN)
    assert (server.created, cloud.abilities.idempotent_create) == ([found.name], False)
    cloud.destroy(found)
    while cloud.find(RUN):
        with pytest.raises(api.Throttled, match="in use"):
            cloud.tidy(RUN)
    cloud.tidy(RUN)
    assert server.leftovers() == []


def test_a_machine_is_ours_by_its_name_too(cloud: Lambda, server: LambdaServer) -> None:
    """Tags can be taken off in the console; other people's machines are never ours."""
    made = cloud.create(order(node=1, attempt=2))
    server.machines_by_id[made.id].body["tags"] = []
    (found,) = cloud.find(RUN)
    assert (found.run_id, found.node, found.attempt) == (RUN, 1, 2)
    server.machines_by_id[made.id].body["name"] = "dtrain notes"
    assert cloud.find() == []


@pytest.mark.parametrize(
    ("status", "state", "preempted"), [("unhealthy", "running", False), ("preempted", "stopped", True)]
)
def test_states_that_are_not_usual(
    cloud: Lambda, server: LambdaServer, status: str, state: str, preempted: bool
) -> None:
    made = cloud.create(order())
    server.machines_by_id[made.id].body["status"] = status
    (found,) = cloud.find(RUN)
    assert (found.state, found.preempted, found.reason) == (state, preempted, f"Lambda says {status}")


@pytest.mark.parametrize(("status", "body"), [(200, HTML), (502, HTML), (200, b"")], ids=["200", "502", "empty"])
def test_something_in_between_answers(cloud: Lambda, server: LambdaServer, status: int, body: bytes) -> None:
    server.faults.append(Fault("GET", "/instances$", status, body))
    with pytest.raises(api.ProviderDown) as caught:
        cloud.find()
    assert "\n" not in caught.value.message
    server.faults.append(Fault("POST", "/launch$", status, body))
    with pytest.raises(api.OutcomeUnknown):
        cloud.create(order())


def test_nobody_listens(cloud: Lambda, server: LambdaServer) -> None:
    server.stop()
    with pytest.raises(api.ProviderDown, match="no connection"):
        cloud.create(order())


def test_no_key_no_rented_machine(cloud: Lambda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMBDA_API_KEY", " ")
    with pytest.raises(api.NoCredentials, match="LAMBDA_API_KEY is not set"):
        cloud.find()
    monkeypatch.setenv("LAMBDA_API_KEY", "another")
    with pytest.raises(api.NoCredentials, match="global/invalid-api-key"):
        cloud.offers(Need("h100", 1))


NEEDS = [
    (Need("4090", 1), api.NoSuchMachine, "h100-pcie"),
    (Need("h100", 16), api.NoSuchMachine, "16 × h100"),
    (Need("h100", 1, spot=True), api.NoSuchMachine, "spot"),
    (Need("h100", 8, nodes=2), api.NoSuchMachine, "network"),
    (Need("a100-80gb", 8), api.NoCapacity, "gpu_8x_a100_80gb_sxm4"),
]


@pytest.mark.parametrize(("need", "kind", "says"), NEEDS, ids=lambda value: str(value)[:30])
def test_what_lambda_does_not_have(cloud: Lambda, need: Need, kind: type[api.ProviderError], says: str) -> None:
    with pytest.raises(kind) as caught:
        cloud.offers(need)
    assert says in str(caught.value)


def test_all_prices_in_one_request(cloud: Lambda, server: LambdaServer) -> None:
    told = {(offer.machine, offer.gpu, offer.usd_per_hour) for offer in cloud.all_offers()}
    assert len(server.log) == 1
    assert ("gpu_8x_a100_80gb_sxm4", "a100-80gb", 22.32) in told
    assert "gpu_1x_a10" not in {machine for machine, _, _ in told}, "a card that the catalogue does not have"


def test_a_region_without_room_is_told_with_those_that_have_it(cloud: Lambda) -> None:
    with pytest.raises(api.NoCapacity, match="gpu_8x_h100_sxm5 in us-west-1 now; there is in us-south-1"):
        cloud.offers(Need("h100", 8, regions=("us-west-1",)))
    with pytest.raises(api.NoCapacity, match="capacity"):
        cloud.create(order(replace(H100, region="us-south-1")))


def test_its_limits_are_kept(cloud: Lambda, server: LambdaServer, clock: Clock) -> None:
    for attempt in range(1, 5):
        cloud.create(order(attempt=attempt))
    assert server.too_soon == 0
    assert 36 <= clock.seconds - 1000 <= 60


def test_who_is_throttled_is_told_how_long(cloud: Lambda, server: LambdaServer) -> None:
    server.faults.append(Fault("GET", "/instances$", 429, {"error": {"code": "x"}}, headers={"Retry-After": "7"}))
    with pytest.raises(api.Throttled) as caught:
        cloud.find()
    assert caught.value.retry_seconds == 7


def test_processes_wait_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand for processes: what they share is the file. Another key has a line of its own."""
    monkeypatch.setenv("DTRAIN_HOME", str(tmp_path))
    slots: list[float] = []

    def ask(key: str) -> None:
        asleep: list[float] = []
        Pace(key, lambda: 100.0 + sum(asleep), asleep.append).wait({"request": 1.0})
        slots.append(sum(asleep))

    threads = [threading.Thread(target=ask, args=("one",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(slots) == [float(second) for second in range(8)]
    ask("another")
    assert slots[-1] == 0.0
    assert "one" not in "".join(path.name for path in tmp_path.rglob("*"))


def test_a_clock_that_began_anew_and_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setenv("DTRAIN_HOME", str(tmp_path))
    Pace(KEY, lambda: 9e9, lambda seconds: None).wait({"request": 1.0})
    Pace(KEY, clock.now, clock.sleep).wait({"request": 1.0})
    (file,) = (tmp_path / "pace").iterdir()
    file.write_text("[cut")
    Pace(KEY, clock.now, clock.sleep).wait({"request": 1.0})
    assert clock.slept == []


def test_the_key_is_in_nothing_that_is_shown_or_kept(cloud: Lambda, server: LambdaServer, tmp_path: Path) -> None:
    made = cloud.create(order())
    with pytest.raises(api.ProviderError) as caught:
        cloud.create(order(replace(H100, region="us-west-9")))
    shown = [cloud.requests(order()), cloud.ending(made), caught.value.as_json(), repr(made), repr(cloud.options)]
    kept = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    assert KEY not in json.dumps(shown) + "".join(kept)
    assert all(KEY not in json.dumps(asked.body) for asked in server.log)


def test_the_key_does_not_travel_in_the_clear(cloud: Lambda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMBDA_CLOUD_BASE_URL", "http://192.0.2.1")
    with pytest.raises(BadInput, match="in the clear"):
        cloud.find()
    with pytest.raises(BadInput) as caught:
        Lambda({"regoin": "x"})
    assert caught.value.key == "launchers.lambda.regoin"


@oracle.needs("lambda")
def test_an_independent_client_reads_every_answer() -> None:
    server = LambdaServer(KEY, time.monotonic)
    server.request_seconds = server.launch_seconds = 0.0
    server.start()
    script = Path(__file__).with_name("lambda_oracle.py")
    ran = subprocess.run(
        [oracle.interpreter("lambda"), str(script), server.url, KEY], capture_output=True, text=True, timeout=60
    )
    server.stop()
    assert ran.stdout == "read every answer\n", ran.stderr
