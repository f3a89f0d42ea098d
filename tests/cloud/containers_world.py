"""RunPod and Vast for the tests: the servers of ours, whose containers are namespaces that run the very start command.

SSH is at another port than 22, as behind a container host. The key in each container is its own and ends only it.
"""

from __future__ import annotations

import base64
import gzip
import re
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.cloud.datacenter import Datacenter
from tests.cloud.runpod_server import RunpodServer
from tests.cloud.served import Served
from tests.cloud.tripwire import Tripwire
from tests.cloud.vast_server import ASKS, VastServer

PORT = 41022
"""Of SSH, from outside."""
RUNPOD_KEY = "rpa_that_is_written_nowhere"
VAST_KEY = "vast_key_that_is_written_nowhere"
SCOPED = {RUNPOD_KEY: "scoped-to-the-pod", VAST_KEY: "scoped-to-the-instance"}
BOOT = """\
{exports}
echo 'Port {port}' > /etc/ssh/sshd_config.d/10-port.conf
"""


@dataclass
class ContainersWorld:
    """One account at one of the two."""

    datacenter: Datacenter
    server: RunpodServer | VastServer
    url_variable: str
    key_variable: str
    id_variable: str
    command_key: str
    machine: str
    hardware: bool = True
    """False: containers are only listed, nothing boots."""

    def __post_init__(self) -> None:
        self.created: list[str] = []
        self.addresses: dict[str, str] = {}
        self.server.on_create = self._boot
        self.server.on_destroy = self._end
        self.server.address_of = lambda name: (self.addresses[name], PORT)
        self.datacenter.on_off = lambda machine_id: None  # what halts itself stays rented
        self.server.start()
        self._relay = Relay(self.datacenter.address, self.server)

    @property
    def tripwire(self) -> Tripwire:
        return self.server.tripwire

    @property
    def environment(self) -> dict[str, str]:
        return {self.url_variable: self.server.url, self.key_variable: self.server.key}

    @property
    def options(self) -> dict[str, Any]:
        """`launchers.NAME` for a run of the tests: a machine that the person names, at a price that they know."""
        address = f"{self.datacenter.address}/32"
        return {"machine": self.machine, "usd_per_hour": 0.4, "regions": ["EU-RO-1"], "client_address": address}

    def machines(self) -> list[str]:
        """Names of what is there and billed."""
        if isinstance(self.server, RunpodServer):
            return [pod["name"] for pod in self.server.pods.values()]
        return [row["label"] for row in self.server.instances.values()]

    def leftovers(self) -> list[str]:
        """Beside containers nothing is made."""
        return []

    def take_back(self) -> None:
        """Somebody bid more: every container is stopped, and its disk goes on costing."""
        for machine in self.datacenter.on:
            machine.power_off()
        for pod in getattr(self.server, "pods", {}).values():
            pod["desiredStatus"] = "EXITED"
        for row in getattr(self.server, "instances", {}).values():
            row |= {"intended_status": "stopped", "actual_status": "exited"}

    def reset(self) -> None:
        """Another account, empty."""
        for machine in self.datacenter.on:
            machine.power_off()
        self.created.clear()
        self.server.forget_everything()

    def close(self) -> None:
        self._relay.close()
        self.server.stop()

    def _boot(self, made: Mapping[str, Any]) -> None:
        name = str(made.get("name") or made["label"])
        self.created.append(name)
        self.addresses[name] = self.datacenter.free_address()
        if not self.hardware:
            return
        exports = {self.id_variable: made["id"], self._scoped_variable: SCOPED[self.server.key]}
        first = BOOT.format(exports="\n".join(f"export {key}={value}" for key, value in exports.items()), port=PORT)
        script = unpacked(str(made[self.command_key])).replace(self.server.url, self._relay.url)
        self.datacenter.boot(str(made["id"]), self.addresses[name], first + script)

    def _end(self, gone: Mapping[str, Any]) -> None:
        self.datacenter.power_off(str(gone["id"]))

    @property
    def _scoped_variable(self) -> str:
        return "RUNPOD_API_KEY" if self.id_variable == "RUNPOD_POD_ID" else "CONTAINER_API_KEY"


def runpod_world(datacenter: Datacenter) -> ContainersWorld:
    return ContainersWorld(
        datacenter, RunpodServer(RUNPOD_KEY), "RUNPOD_API_BASE_URL", "RUNPOD_API_KEY", "RUNPOD_POD_ID", "dockerArgs",
        "NVIDIA GeForce RTX 4090",
    )  # fmt: skip


def vast_world(datacenter: Datacenter) -> ContainersWorld:
    number = str(ASKS[0]["id"])
    return ContainersWorld(
        datacenter, VastServer(VAST_KEY), "VAST_URL", "VAST_API_KEY", "CONTAINER_ID", "onstart", number
    )


def unpacked(command: str) -> str:
    """The script inside a start command."""
    found = re.search(r"echo (\S+) \| base64 -d \| gunzip \| sh", command)
    assert found is not None, command
    return gzip.decompress(base64.b64decode(found[1])).decode()


class Relay:
    """The server's loopback port as a container sees it: at this end of the bridge."""

    def __init__(self, address: str, server: Served) -> None:
        self._to = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        self._listener = socket.create_server((address, 0))
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        address, port = self._listener.getsockname()
        return f"http://{address}:{port}"

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed
                return
            self._serve(near)

    def _serve(self, near: socket.socket) -> None:
        """One request, one answer, both ends closed."""
        with near, socket.create_connection(self._to) as far:
            back = threading.Thread(target=_pump, args=(far, near))
            back.start()
            _pump(near, far)
            back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:  # the other end is gone
        return
