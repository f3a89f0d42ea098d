"""AWS for the tests: moto's server behind a proxy of ours that adds what it lacks, and machines that really boot.

The proxy honours ClientToken, gives machines the addresses of namespaces, boots and ends these, and puts faults in the
way: no capacity, throttling, HTML, an answer that is lost after the call was carried out, machines that are not listed
yet. moto's own public addresses are never used.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode

import pytest

from tests.cloud import aws_price_list
from tests.cloud.datacenter import Datacenter
from tests.cloud.tripwire import Tripwire

REGION = "us-east-1"
REGIONS = (REGION, "us-east-2", "us-west-2")
"""Of the account."""
ERROR = (
    '<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error><Code>{code}</Code><Message>{message}</Message>'
    "</Error></Errors><RequestID>made-by-a-test</RequestID></Response>"
)
HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
NO_MACHINES = (
    '<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>x</requestId>'
    "<reservationSet/></DescribeInstancesResponse>"
)


@dataclass
class Fault:
    """What the next calls of an action meet."""

    action: str
    kind: str
    """An error code of AWS's, or `html`, `cut` (nothing happens, no answer), `lost` (it happens, no answer)."""
    times: int = 1
    region: str | None = None


class Cut(Exception):
    """The line goes dead."""


@dataclass
class AwsWorld:
    """One account at AWS."""

    datacenter: Datacenter
    tripwire: Tripwire = field(default_factory=Tripwire)
    faults: list[Fault] = field(default_factory=list)
    hidden_seconds: float = 0.0
    """How long a new machine is not listed."""
    created: list[str] = field(default_factory=list)
    tokens: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    bills: dict[str, list[float]] = field(default_factory=dict)
    """Of each machine when it was made and, once it is ended, when: seconds since 1970."""
    hardware: bool = True
    """False: machines are only listed, nothing boots."""

    def __post_init__(self) -> None:
        from moto.server import ThreadedMotoServer

        self._lock = threading.RLock()
        self._last_create = 0.0
        self.moto = ThreadedMotoServer(ip_address="0.0.0.0", port=0, verbose=False)
        self.moto.start()
        self.moto_port = self.moto.get_host_and_port()[1]
        self.moto_url = f"http://127.0.0.1:{self.moto_port}"
        handler = type("Handler", (_Handler,), {"world": self})
        self.server = ThreadingHTTPServer(("0.0.0.0", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.datacenter.on_off = self._shut_down

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_EC2": self.url, "AWS_ENDPOINT_URL_PRICING": self.url, "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "AKIATESTKEYID", "AWS_SECRET_ACCESS_KEY": "a-secret-that-is-written-nowhere",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }  # fmt: skip

    @property
    def options(self) -> dict[str, Any]:
        """`launchers.aws` for a run of the tests."""
        return {
            "machine": "c5.xlarge", "usd_per_hour": 0.2, "regions": [REGION], "private_addresses": True,
            "client_address": f"{self.datacenter.address}/32",
        }  # fmt: skip

    def machines(self) -> list[str]:
        """Ids of what is there and billed, in every region."""
        return [one.id for one in self._instances() if one.state in ("pending", "running", "stopping", "stopped")]

    def _instances(self) -> Iterator[Any]:
        from moto.backends import get_backend

        for region in get_backend("ec2")["123456789012"].values():
            for reservation in region.reservations.values():
                yield from reservation.instances

    def reset(self) -> None:
        """Another account, empty."""
        self.faults.clear()
        self.created.clear()
        self.tokens.clear()
        self.bills.clear()
        self.tripwire = Tripwire()
        self.hidden_seconds = 0.0
        for machine in self.datacenter.on:
            machine.power_off()
        urllib.request.urlopen(urllib.request.Request(f"{self.moto_url}/moto-api/reset", method="POST")).close()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.moto.stop()

    # --- calls ---

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        target = headers.get("X-Amz-Target", "")  # of the JSON APIs; EC2 has a form
        form = {} if target else dict(parse_qsl(body.decode(), keep_blank_values=True))
        action = target.partition(".")[2] or form.get("Action", "")
        fault = self._fault(action, headers)
        self.tripwire.passing(action, "before")
        if fault is not None and fault.kind != "lost":
            return _faulty(fault, bool(target))
        status, answered = self._carried_out(action, form, path, headers, body)
        self.tripwire.passing(action, "after")
        if fault is not None:
            raise Cut
        return status, answered

    def _fault(self, action: str, headers: dict[str, str]) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.action == action and (fault.region is None or fault.region in headers["Authorization"]):
                    fault.times -= 1
                    self.faults = [one for one in self.faults if one.times > 0]
                    return fault
        return None

    def _carried_out(
        self, action: str, form: dict[str, str], path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, bytes]:
        if action == "GetProducts":
            return 200, json.dumps(aws_price_list.get_products(json.loads(body))).encode()
        if action == "DescribeRegions":
            return 200, _regions().encode()
        if action == "DeletePlacementGroup":  # moto has none
            return 400, ERROR.format(code="InvalidPlacementGroup.Unknown", message="there is none").encode()
        if action == "CreatePlacementGroup":
            return 200, b"<CreatePlacementGroupResponse><return>true</return></CreatePlacementGroupResponse>"
        if action == "RunInstances":
            return self._run_instances(form, path, headers)
        if action == "DescribeInstances" and time.monotonic() - self._last_create < self.hidden_seconds:
            return 200, NO_MACHINES.encode()
        status, answered = self._forward(path, headers, body)
        if action == "TerminateInstances" and status == 200:
            for machine in [value for key, value in form.items() if key.startswith("InstanceId.")]:
                self.datacenter.power_off(machine)
                self._end_bill(machine)
        return status, answered

    def _end_bill(self, machine: str) -> None:
        if len(self.bills[machine]) == 1:
            self.bills[machine].append(time.time())

    def _run_instances(self, form: dict[str, str], path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        token, asked = form["ClientToken"], urlencode(sorted(form.items()))
        with self._lock:
            if token in self.tokens:
                before, answered = self.tokens[token]
                if before != asked:
                    return 400, ERROR.format(code="IdempotentParameterMismatch", message="another order").encode()
                return 200, answered
            address = self.datacenter.free_address()
            changed = {**form, "ImageId": "ami-03cf127a", "PrivateIpAddress": address}
            status, answered = self._forward(path, headers, urlencode(changed).encode())
            if status == 200:
                self.tokens[token] = asked, answered
                machine = re.findall(r"<instanceId>(i-[0-9a-f]+)</instanceId>", answered.decode())[0]
                self.created.append(token)
                self.bills[machine] = [time.time()]
                self._last_create = time.monotonic()
                if self.hardware:
                    self.datacenter.boot(machine, address, base64.b64decode(form["UserData"]).decode())
            return status, answered

    def _forward(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        kept = {key: value for key, value in headers.items() if key.lower() in ("authorization", "content-type")}
        request = urllib.request.Request(self.moto_url + path, body, kept, method="POST")
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def _shut_down(self, machine: str) -> None:
        """InstanceInitiatedShutdownBehavior=terminate, and anything else stops it, and it stays billed."""
        for one in self._instances():
            if one.id == machine and one.instance_initiated_shutdown_behavior == "terminate":
                one.terminate()
                self._end_bill(machine)
            elif one.id == machine:
                one.stop()


def a_bucket(world: AwsWorld, monkeypatch: pytest.MonkeyPatch) -> Any:
    """s3://models where a machine reaches it, and a client for it."""
    import boto3

    there = f"http://{world.datacenter.address}:{world.moto_port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", there)
    s3 = boto3.client("s3", endpoint_url=there)
    s3.create_bucket(Bucket="models")
    return s3


def _regions() -> str:
    """An account need not have every region; moto takes half a second to make one."""
    items = "".join(f"<item><regionName>{region}</regionName></item>" for region in REGIONS)
    return f"<DescribeRegionsResponse><regionInfo>{items}</regionInfo></DescribeRegionsResponse>"


def _faulty(fault: Fault, in_json: bool) -> tuple[int, bytes]:
    if fault.kind == "cut":
        raise Cut
    if fault.kind == "html":
        return 502, HTML
    if in_json:
        return 400, json.dumps({"__type": fault.kind, "Message": f"{fault.kind}, says the test"}).encode()
    status = 503 if "Throttl" in fault.kind or ("Limit" in fault.kind and "Request" in fault.kind) else 400
    return status, ERROR.format(code=fault.kind, message=f"{fault.kind}, says the test").encode()


class _Handler(BaseHTTPRequestHandler):
    world: AwsWorld
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            status, answered = self.world.answer(self.path, dict(self.headers.items()), body)
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if answered == HTML else "text/xml")
            self.send_header("Content-Length", str(len(answered)))
            self.end_headers()
            self.wfile.write(answered)
        except (Cut, BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


__all__ = ["AwsWorld", "Callable", "Fault", "parse_qs"]
