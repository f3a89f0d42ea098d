"""The watchdog as a machine gets it: sent to `python3 -`, it outlives its parent and asks a server for the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dtrain_launchers.lambda_cloud import Lambda

from dtrain.cloud.provider import Offer, Order
from dtrain.cloud.watchdog import program
from tests.cloud.lambda_server import LambdaServer
from tests.cloud.served import Fault

KEY = "secret_lambda_0123456789"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LambdaServer]:
    monkeypatch.setenv("LAMBDA_API_KEY", KEY)
    monkeypatch.setenv("DTRAIN_HOME", str(tmp_path / "home"))
    served = LambdaServer(KEY, time.monotonic)
    served.request_seconds = served.launch_seconds = 0.0
    served.start()
    monkeypatch.setenv("LAMBDA_CLOUD_BASE_URL", served.url)
    yield served
    served.stop()


@pytest.fixture
def arm(server: LambdaServer, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Arms one for a machine of its own; the number of its process."""
    cloud = Lambda({"request_seconds": 0, "launch_seconds": 0})
    offer = Offer("lambda", "us-west-1", "gpu_1x_h100_sxm5", "h100", 1, 4.29)
    machine = cloud.create(Order("run", 0, 1, offer, "#!/bin/sh\n", "ssh-ed25519 A", "203.0.113.7/32", 60))
    armed = []

    def made(**told: Any) -> int:
        script = program(cloud.ending(machine), {"LAMBDA_API_KEY": KEY}, state=str(tmp_path / "watchdog"), **told)
        ran = subprocess.run([sys.executable, "-", "x"], input=script, capture_output=True, timeout=30)
        assert ran.stderr == b""
        armed.append(int(json.loads(ran.stdout)["armed"]))
        return armed[-1]

    yield made
    for number in armed:
        if is_alive(number):
            os.kill(number, signal.SIGKILL)


def is_alive(number: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{number}/stat").read_text()
    except FileNotFoundError:
        return False


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_asks_the_run_to_save_and_then_ends_the_machine(
    server: LambdaServer, arm: Callable[..., int], tmp_path: Path
) -> None:
    """No answer, an error page: it asks on."""
    asked = tmp_path / "asked"
    arm(seconds=0.5, save=["sh", "-c", f"cat > {asked}"], sent="folder", save_seconds=0.4)
    wait_for(lambda: bool(server.sent("POST", "/terminate")))
    assert asked.read_text() == "folder"
    assert [one.body["status"] for one in server.machines_by_id.values()] == ["terminating"]


def test_it_asks_until_the_provider_knows_no_such_machine(
    server: LambdaServer, arm: Callable[..., int], tmp_path: Path
) -> None:
    server.faults += [Fault("POST", "/terminate", cut=True), Fault("POST", "/terminate", 502, b"<html>")]
    number = arm(seconds=0.0, save=["/no/such/program"], save_seconds=0.0, again_seconds=0.05)
    wait_for(lambda: len(server.sent("POST", "/terminate")) >= 4)
    server.machines_by_id.clear()
    wait_for(lambda: not is_alive(number))
    assert "cannot ask the run to save" in (tmp_path / "watchdog.log").read_text()


def test_the_key_is_only_in_its_memory(
    arm: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAMBDA_API_KEY")  # a machine does not have it in its environment
    number = arm(seconds=3600, save=[], save_seconds=60)
    seen = [Path(f"/proc/{number}/{name}").read_text() for name in ("cmdline", "environ")]
    kept = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert all(seen)
    assert KEY not in "".join([*seen, *kept])


def test_the_last_one_armed_is_the_only_one(server: LambdaServer, arm: Callable[..., int]) -> None:
    first = arm(seconds=0.3, save=[], save_seconds=0.0)
    second = arm(seconds=3600, save=[], save_seconds=0.0)
    assert not is_alive(first)
    assert is_alive(second)
    time.sleep(0.4)
    assert server.sent("POST", "/terminate") == []
