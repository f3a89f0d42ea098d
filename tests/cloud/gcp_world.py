"""Google for the tests: the server of ours, whose machines are namespaces that really boot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.cloud.datacenter import Datacenter
from tests.cloud.gcp_server import GcpServer
from tests.cloud.tripwire import Tripwire

ZONE = "us-central1-a"


@dataclass
class GcpWorld:
    """One project at Google."""

    datacenter: Datacenter
    hardware: bool = True
    """False: machines are only listed, nothing boots."""
    server: GcpServer = field(default_factory=GcpServer)

    def __post_init__(self) -> None:
        self.tripwire: Tripwire = self.server.tripwire
        self.created: list[str] = self.server.created
        self.server.on_created = self._boot
        self.server.on_gone = self.datacenter.power_off
        self.datacenter.on_off = self.server.shut_down
        self.server.start()

    @property
    def environment(self) -> dict[str, str]:
        url = f"{self.server.url}/compute/v1/"
        return {"CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": url, "GOOGLE_CLOUD_PROJECT": "my-project"}

    @property
    def options(self) -> dict[str, Any]:
        """`launchers.gcp` for a run of the tests: a machine that the person names, at a price that they know."""
        told = {"machine": "e2-standard-4", "usd_per_hour": 0.2, "regions": [ZONE]}
        return told | {"client_address": f"{self.datacenter.address}/32"}

    def machines(self) -> list[str]:
        """Names of what is there and billed."""
        return self.server.machines()

    def leftovers(self) -> list[str]:
        return self.server.leftovers()

    def reset(self) -> None:
        """Another project, empty."""
        for machine in self.datacenter.on:
            machine.power_off()
        self.server.forget_everything()
        self.tripwire = self.server.tripwire

    def close(self) -> None:
        self.server.stop()

    def _boot(self, body: Mapping[str, Any]) -> str:
        address = self.datacenter.free_address()
        if self.hardware:
            metadata = {item["key"]: item["value"] for item in body["metadata"]["items"]}
            self.datacenter.boot(body["name"], address, metadata["startup-script"])
        return address
