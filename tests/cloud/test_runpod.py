"""RunPod over HTTP, against a server of ours whose GraphQL is typed."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from dtrain_launchers.container import named
from dtrain_launchers.runpod import Runpod
from dtrain_launchers.runpod_request import AFTER_SENDING

from dtrain.cloud import provider as api
from dtrain.cloud.provider import Need, Offer, Order
from dtrain.errors import BadInput
from tests.cloud import oracle
from tests.cloud.runpod_server import NO_INSTANCES, RunpodServer
from tests.cloud.served import HTML, Fault

RUN = "20261123-191500-k3f9"
KEY = "rpa_0123456789-secret"
H100 = Offer(
    "runpod", "any data centre", "NVIDIA H100 80GB HBM3, secure cloud", "h100", 2, 7.98,
    data={"gpu_type_id": "NVIDIA H100 80GB HBM3", "cloud": "SECURE"},
)  # fmt: skip
USER_DATA = '#!/bin/sh\necho "it\'s first"\n'


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RunpodServer]:
    served = RunpodServer(KEY)
    served.start()
    monkeypatch.setenv("RUNPOD_API_BASE_URL", served.url)
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield served
    served.stop()


def order(offer: Offer = H100, node: int = 0, attempt: int = 1, run: str = RUN) -> Order:
    return Order(run, node, attempt, offer, USER_DATA, "ssh-ed25519 AAAA dtrain", "203.0.113.7/32", 3600.0, 80)


def test_it_is_a_provider() -> None:
    assert isinstance(Runpod(), api.Provider)
    assert named("dtrain-20261123-191500-k3f9-n3-a12") == (RUN, 3, 12)
    assert named("somebody-elses") is None


def test_offers_are_live_and_community_machines_are_asked_for(server: RunpodServer) -> None:
    [offer] = Runpod().offers(Need("h100", 2))
    assert (offer.usd_per_hour, offer.gpus, offer.priced_on, offer.capacity) == (7.98, 2, "live", None)
    both = Runpod({"cloud": "all"}).offers(Need("h100", 2))
    assert [one.usd_per_hour for one in both] == [5.38, 7.98]
    [spot] = Runpod().offers(Need("h100", 1, spot=True, regions=("EU-RO-1",)))
    assert (spot.usd_per_hour, spot.region, spot.spot) == (1.75, "EU-RO-1", True)


@pytest.mark.parametrize(
    ("need", "kind", "words"),
    [
        (Need("l4", 1), api.NoSuchMachine, "no l4"),
        (Need("4090", 8), api.NoSuchMachine, "at most 4"),
        (Need("4090", 1), api.NoCapacity, "no price"),
        (Need("cpu", 0), api.NoSuchMachine, "GPUs only"),
    ],
)
def test_what_it_does_not_have_is_said(
    server: RunpodServer, need: Need, kind: type[api.ProviderError], words: str
) -> None:
    with pytest.raises(kind, match=words) as refused:
        Runpod().offers(need)
    assert refused.value.elsewhere
    assert refused.value.fix


def test_what_is_sent_is_what_was_shown(server: RunpodServer) -> None:
    provider = Runpod()
    shown = provider.requests(order())
    assert shown == provider.requests(order()), "pure"
    assert not server.log
    assert json.loads(json.dumps(shown)) == shown
    provider.create(order())
    [sent] = [asked.as_json() for asked in server.log]
    ends = sent["body"]["variables"]["input"].pop("terminateAfter")
    assert shown[0]["body"]["variables"]["input"].pop("terminateAfter") == AFTER_SENDING
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", ends)
    assert [sent] == list(shown)
    assert KEY not in json.dumps(shown)
    told = shown[0]["body"]["variables"]["input"]
    assert (told["name"], told["volumeInGb"], told["ports"]) == (f"dtrain-{RUN}-n0-a1", 0, "22/tcp")
    assert told["dockerArgs"].count("'") == 2, "one quoted command, whatever the user data holds"


def test_a_machine_lives_from_its_order_to_its_end(server: RunpodServer) -> None:
    provider = Runpod()
    made = provider.create(order())
    provider.create(order(run="20261124-000000-aaaa"))
    provider.create(order(node=1, offer=replace(H100, spot=True, usd_per_hour=3.5)))
    server.pods["theirs"] = {**server.pods["pod1"], "id": "theirs", "name": "jupyter", "looks": 0}
    assert [(one.state, one.address) for one in provider.find(RUN)] == [("starting", None)] * 2
    provider.find(RUN)
    first, second = provider.find(RUN)
    assert (first.id, first.node, first.attempt) == (made.id, 0, 1)
    assert (first.state, first.address, first.port, first.user) == ("running", "203.0.113.9", 10222, "root")
    assert server.pods[second.id]["podType"] == "INTERRUPTABLE"
    server.pods[second.id]["desiredStatus"] = "EXITED"
    taken = provider.find(RUN)[1]
    assert (taken.state, taken.preempted, taken.address) == ("stopped", True, None)
    assert {one.run_id for one in provider.find()} == {RUN, "20261124-000000-aaaa"}
    for one in (first, first, second):
        provider.destroy(one)
    assert provider.find(RUN) == []
    assert set(server.pods) == {"pod2", "theirs"}


def test_a_full_market_and_a_spend_limit_are_told_apart(server: RunpodServer) -> None:
    provider = Runpod()
    server.refuses = [NO_INSTANCES]
    with pytest.raises(api.NoCapacity, match="no longer any instances"):
        provider.create(order())
    server.account["currentSpendPerHr"] = 79.5
    with pytest.raises(api.AccountClosed, match=r"spend limit of \$80"):
        provider.create(order())
    server.account |= {"currentSpendPerHr": 0.0, "clientBalance": 3.0}
    server.refuses = [NO_INSTANCES]
    with pytest.raises(api.AccountClosed, match=r"balance of \$3.00"):
        provider.create(order())
    assert not server.pods


SUSPENDED = {"errors": [{"message": "account suspended"}]}
FAULTS = [
    (Fault("POST", "graphql", 401, {"errors": [{"message": "no"}]}), api.NoCredentials, api.NoCredentials),
    (Fault("POST", "graphql", 403, {"error": "read only"}), api.NoRights, api.NoRights),
    (Fault("POST", "graphql", 200, {"errors": [{"message": "Unauthorized"}]}), api.NoRights, api.NoRights),
    (Fault("POST", "graphql", 200, SUSPENDED), api.AccountClosed, api.AccountClosed),
    (Fault("POST", "graphql", 429, {}, headers={"Retry-After": "7"}), api.Throttled, api.Throttled),
    (Fault("POST", "graphql", 200, HTML), api.ProviderDown, api.OutcomeUnknown),
    (Fault("POST", "graphql", 500, {"oops": 1}), api.ProviderDown, api.OutcomeUnknown),
    (Fault("POST", "graphql", cut=True), api.ProviderDown, api.OutcomeUnknown),
    (Fault("POST", "graphql", cut=True, performed=True), api.ProviderDown, api.OutcomeUnknown),
]


@pytest.mark.parametrize(("fault", "looking", "ordering"), FAULTS, ids=lambda one: getattr(one, "__name__", None))
def test_each_no_and_each_silence_has_its_name(
    server: RunpodServer, fault: Fault, looking: type[api.ProviderError], ordering: type[api.ProviderError]
) -> None:
    provider = Runpod()
    server.faults = [replace(fault)]
    with pytest.raises(looking) as seen:
        provider.find()
    assert type(seen.value) is looking
    server.faults = [replace(fault)]
    with pytest.raises(ordering) as refused:
        provider.create(order())
    assert type(refused.value) is ordering
    assert refused.value.fix
    assert KEY not in str(refused.value)
    assert len(provider.find(RUN)) == int(fault.performed), "what was made all the same is found by its name"
    if fault.status == 429:
        assert refused.value.retry_seconds == 7


def test_without_a_key_or_with_a_key_in_the_clear_nothing_is_sent(
    server: RunpodServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    with pytest.raises(api.NoCredentials, match="RUNPOD_API_KEY is not set"):
        Runpod().find()
    (tmp_path / ".runpod").mkdir()
    (tmp_path / ".runpod" / "config.toml").write_text(f'[default]\napi_key = "{KEY}"\n')
    assert Runpod().find() == []
    monkeypatch.setenv("RUNPOD_API_BASE_URL", "http://203.0.113.1")
    with pytest.raises(BadInput, match="in the clear"):
        Runpod().find()
    with pytest.raises(BadInput, match="no such option"):
        Runpod({"clouds": "all"})


def test_a_container_ends_its_own_rental(server: RunpodServer, tmp_path: Path) -> None:
    """The start command, run by a real shell: user data ran, and `shutdown` ends the pod with the pod's own key."""
    provider = Runpod()
    made = provider.create(order())
    command = str(server.pods[made.id]["dockerArgs"])
    assert command.startswith("bash -c '")
    assert command.endswith("; exec /start.sh'")
    script = command.removeprefix("bash -c '").removesuffix("; exec /start.sh'")
    moved = script.replace("| sh", f"| sed 's#/usr/local/sbin#{tmp_path}#; s#/root/#{tmp_path}/#' | sh")
    assert USER_DATA in subprocess.run(script.replace("| sh", ""), shell=True, capture_output=True, text=True).stdout
    done = subprocess.run(moved, shell=True, capture_output=True, text=True, timeout=30)
    assert "it's first" in done.stdout
    env = {"PATH": os.environ["PATH"], "RUNPOD_POD_ID": made.id, "RUNPOD_API_KEY": "scoped-to-the-pod"}
    shutdown = subprocess.Popen([str(tmp_path / "shutdown"), "-h", "now"], env=env)
    try:
        for _ in range(100):
            if not server.pods:
                break
            with pytest.raises(subprocess.TimeoutExpired):
                shutdown.wait(0.1)
    finally:
        shutdown.kill()
        shutdown.wait()
    assert provider.find() == []


@oracle.needs("runpod")
def test_their_own_client_reads_every_answer(server: RunpodServer) -> None:
    Runpod().create(order())
    env = {**os.environ, "RUNPOD_API_BASE_URL": server.url, "RUNPOD_API_KEY": KEY}
    script = str(Path(__file__).with_name("runpod_oracle.py"))
    done = subprocess.run([oracle.interpreter("runpod"), script], env=env, capture_output=True, text=True, timeout=60)
    assert "read every answer: pod not found" in done.stdout, done.stderr
