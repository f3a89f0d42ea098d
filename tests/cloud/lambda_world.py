"""Lambda for the tests: the server of ours, whose machines are namespaces that really boot."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.cloud.containers_world import Relay
from tests.cloud.datacenter import Datacenter
from tests.cloud.lambda_server import LambdaServer
from tests.cloud.tripwire import Tripwire

KEY = "secret_lambda_that_is_written_nowhere"
REGION = "us-west-1"
FORWARD = """\
import socket, threading
def pump(a, b):
    while data := a.recv(65536):
        b.sendall(data)
    b.shutdown(socket.SHUT_WR)
listener = socket.create_server(("127.0.0.1", {here}))
while True:
    near, far = listener.accept()[0], socket.create_connection(("{address}", {there}))
    for pair in ((near, far), (far, near)):
        threading.Thread(target=pump, args=pair, daemon=True).start()
"""
"""A machine reaches the API by the same name as everybody: here that is a port of its own loopback."""


def _unhurried() -> LambdaServer:
    """Its limits are tried in test_lambda.py: here nobody waits for them."""
    server = LambdaServer(KEY, time.monotonic)
    server.request_seconds = server.launch_seconds = 0.0
    return server


@dataclass
class LambdaWorld:
    """One account at Lambda."""

    datacenter: Datacenter
    hardware: bool = True
    """False: machines are only listed, nothing boots."""
    server: LambdaServer = field(default_factory=_unhurried)

    def __post_init__(self) -> None:
        self.tripwire: Tripwire = self.server.tripwire
        self.created: list[str] = self.server.created
        self.server.on_created = self._boot
        self.server.on_gone = self.datacenter.power_off
        self.datacenter.on_off = lambda name: None  # what halts itself stays active, and billed
        self.server.start()
        self._relay = Relay(self.datacenter.address, self.server)

    @property
    def environment(self) -> dict[str, str]:
        return {"LAMBDA_CLOUD_BASE_URL": self.server.url, "LAMBDA_API_KEY": KEY}

    @property
    def options(self) -> dict[str, Any]:
        """`launchers.lambda` for a run of the tests: a machine that the person names, at a price that they know."""
        told = {"machine": "cpu_4x_general", "usd_per_hour": 0.2, "regions": [REGION]}
        address = f"{self.datacenter.address}/32"
        return told | {"client_address": address, "request_seconds": 0, "launch_seconds": 0}

    def machines(self) -> list[str]:
        """Names of what is there and billed."""
        return self.server.machines()

    def leftovers(self) -> list[str]:
        return self.server.leftovers()

    def reset(self) -> None:
        """Another account, empty."""
        for machine in self.datacenter.on:
            machine.power_off()
        self.server.forget_everything()
        self.tripwire = self.server.tripwire

    def close(self) -> None:
        self._relay.close()
        self.server.stop()

    def _boot(self, body: Mapping[str, Any]) -> str:
        address = self.datacenter.free_address()
        if self.hardware:
            self.datacenter.boot(body["name"], address, self._with_api(body["user_data"]))
        return address

    def _with_api(self, script: str) -> str:
        ports = [url.rpartition(":")[2] for url in (self.server.url, self._relay.url)]
        forward = FORWARD.format(here=ports[0], there=ports[1], address=self.datacenter.address)
        return f"{shlex.join([sys.executable, '-c', forward])} </dev/null >/dev/null 2>&1 &\n{script}"
