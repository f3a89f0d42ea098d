"""A small RunPod of ours: its GraphQL, typed, so that a field or an input that RunPod's clients do not use is refused.

The schema holds what runpod 1.12.0 (its Python client) and runpodctl ask and send, and beside it what RunPod's pages
and its users' code name. Errors come with HTTP 200, as RunPod's do. Time is counted in looks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from graphql import ExecutionResult, build_schema, graphql_sync

from tests.cloud.served import Asked, Refused, Served

NO_INSTANCES = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)
SCHEMA = """
scalar DateTime
enum CloudTypeEnum { ALL SECURE COMMUNITY }
type Query {
  myself: User
  pod(input: PodFilter): Pod
  gpuTypes(input: GpuTypeFilter): [GpuType]
}
type Mutation {
  podFindAndDeployOnDemand(input: PodFindAndDeployOnDemandInput): Pod
  podRentInterruptable(input: PodRentInterruptableInput!): Pod
  podStop(input: PodStopInput!): Pod
  podTerminate(input: PodTerminateInput!): Boolean
}
input PodFilter { podId: String }
input GpuTypeFilter { id: String }
input GpuLowestPriceInput { gpuCount: Int }
input PodStopInput { podId: String! }
input PodTerminateInput { podId: String! }
input EnvironmentVariableInput { key: String! value: String! }
input PodFindAndDeployOnDemandInput {
  name: String imageName: String gpuTypeId: String gpuCount: Int cloudType: CloudTypeEnum dataCenterId: String
  containerDiskInGb: Int volumeInGb: Int volumeMountPath: String minVcpuCount: Int minMemoryInGb: Int ports: String
  supportPublicIp: Boolean startSsh: Boolean dockerArgs: String env: [EnvironmentVariableInput] terminateAfter: DateTime
}
input PodRentInterruptableInput {
  name: String imageName: String gpuTypeId: String gpuCount: Int cloudType: CloudTypeEnum dataCenterId: String
  containerDiskInGb: Int volumeInGb: Int volumeMountPath: String minVcpuCount: Int minMemoryInGb: Int ports: String
  supportPublicIp: Boolean startSsh: Boolean dockerArgs: String env: [EnvironmentVariableInput] bidPerGpu: Float!
}
type User { id: String clientBalance: Float currentSpendPerHr: Float spendLimit: Int pubKey: String pods: [Pod] }
type GpuType {
  id: String displayName: String manufacturer: String memoryInGb: Int cudaCores: Int maxGpuCount: Int
  secureCloud: Boolean communityCloud: Boolean securePrice: Float communityPrice: Float oneMonthPrice: Float
  threeMonthPrice: Float oneWeekPrice: Float secureSpotPrice: Float communitySpotPrice: Float
  lowestPrice(input: GpuLowestPriceInput): LowestPrice
}
type LowestPrice { minimumBidPrice: Float uninterruptablePrice: Float stockStatus: String }
type Pod {
  id: String name: String desiredStatus: String podType: String costPerHr: Float gpuCount: Int imageName: String
  lastStatusChange: String machineId: String containerDiskInGb: Int dockerArgs: String dockerId: String env: [String]
  memoryInGb: Int port: Int ports: String uptimeSeconds: Int vcpuCount: Int volumeInGb: Int volumeMountPath: String
  machine: Machine runtime: Runtime
}
type Machine { podHostId: String gpuDisplayName: String }
type Runtime { ports: [Port] }
type Port { ip: String isIpPublic: Boolean privatePort: Int publicPort: Int type: String }
"""
CARDS: tuple[dict[str, Any], ...] = (
    {"id": "NVIDIA H100 80GB HBM3", "displayName": "H100 SXM", "memoryInGb": 80, "maxGpuCount": 8, "securePrice": 3.99,
     "communityPrice": 2.69, "secureSpotPrice": 1.75, "communitySpotPrice": 1.25},
    {"id": "NVIDIA A100-SXM4-80GB", "displayName": "A100 SXM", "memoryInGb": 80, "maxGpuCount": 8, "securePrice": 1.79,
     "communityPrice": 1.39, "secureSpotPrice": 0.95, "communitySpotPrice": None},
    {"id": "NVIDIA GeForce RTX 4090", "displayName": "RTX 4090", "memoryInGb": 24, "maxGpuCount": 4,
     "securePrice": None, "communityPrice": 0.34, "secureSpotPrice": None, "communitySpotPrice": 0.2},
)  # fmt: skip


@dataclass
class RunpodServer(Served):
    key: str
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    account: dict[str, Any] = field(
        default_factory=lambda: {"clientBalance": 50.0, "currentSpendPerHr": 0.0, "spendLimit": 80}
    )
    looks_until_address: int = 2
    """How often a new pod is listed before it tells its port."""
    looks_until_listed: int = 0
    refuses: list[str] = field(default_factory=list)
    """Messages with which the next creates are refused, instead of a pod."""
    address_of: Callable[[str], tuple[str, int]] = lambda name: ("203.0.113.9", 10222)
    on_create: Callable[[dict[str, Any]], None] = lambda pod: None
    on_destroy: Callable[[dict[str, Any]], None] = lambda pod: None

    def __post_init__(self) -> None:
        super().__init__()
        self.schema = build_schema(SCHEMA)
        self.made = 0

    def forget_everything(self) -> None:
        super().forget_everything()
        self.pods.clear()
        self.refuses.clear()

    def name_of(self, asked: Asked) -> str:
        """The field that is asked for."""
        fields = "podFindAndDeployOnDemand|podRentInterruptable|podTerminate|pods|gpuTypes"
        found = re.search(f"({fields})", str(asked.body))
        return found[1] if found else super().name_of(asked)

    def answer(self, asked: Asked) -> Any:
        if asked.headers.get("Authorization") not in (f"Bearer {self.key}", "Bearer scoped-to-the-pod"):
            raise Refused(401, {"errors": [{"message": "Unauthorized"}]})
        assert (asked.method, asked.path) == ("POST", "/graphql"), asked
        told: ExecutionResult = graphql_sync(
            self.schema, asked.body["query"], self._root(), variable_values=asked.body.get("variables")
        )
        errors = [{"message": error.message} for error in told.errors or []]
        return {"data": told.data, **({"errors": errors} if errors else {})}

    def _root(self) -> dict[str, Any]:
        return {
            "myself": lambda info: {"id": "user", **self.account, "pods": self._listed()},
            "pod": lambda info, input: self.pods.get(input["podId"]),
            "gpuTypes": lambda info, input=None: [_card(one) for one in CARDS if input in (None, {"id": one["id"]})],
            "podFindAndDeployOnDemand": lambda info, input: self._create(input, "RESERVED"),
            "podRentInterruptable": lambda info, input: self._create(input, "INTERRUPTABLE"),
            "podStop": lambda info, input: self._stop(input["podId"]),
            "podTerminate": lambda info, input: self._terminate(input["podId"]),
        }

    def _create(self, told: dict[str, Any], kind: str) -> dict[str, Any]:
        if self.refuses:
            raise ValueError(self.refuses.pop(0))
        if self.account["currentSpendPerHr"] + 1 > self.account["spendLimit"]:
            raise ValueError(NO_INSTANCES)
        [card] = [card for card in CARDS if card["id"] == told["gpuTypeId"]]
        self.made += 1
        pod = {
            "id": f"pod{self.made}", "name": told["name"], "desiredStatus": "RUNNING", "podType": kind, "looks": 0,
            "costPerHr": (card["securePrice"] or 0) * told["gpuCount"], "gpuCount": told["gpuCount"],
            "imageName": told["imageName"], "dockerArgs": told.get("dockerArgs"), "machineId": f"host{self.made}",
            "env": [f"{one['key']}={one['value']}" for one in told.get("env") or []],
            "machine": {"gpuDisplayName": card["displayName"]},
        }  # fmt: skip
        self.pods[pod["id"]] = pod
        self.on_create(pod)
        return pod

    def _listed(self) -> list[dict[str, Any]]:
        for pod in self.pods.values():
            pod["looks"] += 1
            running = pod["desiredStatus"] == "RUNNING" and pod["looks"] > self.looks_until_address
            pod["runtime"] = self._runtime(pod["name"]) if running else None
        return [pod for pod in self.pods.values() if pod["looks"] > self.looks_until_listed]

    def _runtime(self, name: str) -> dict[str, Any]:
        address, port = self.address_of(name)
        about = {"privatePort": 22, "type": "tcp"}
        return {
            "ports": [
                {"ip": "100.65.0.9", "isIpPublic": False, "publicPort": 60122, **about},
                {"ip": address, "isIpPublic": True, "publicPort": port, **about},
            ],
        }

    def _existing(self, pod_id: str) -> dict[str, Any]:
        if pod_id not in self.pods:
            raise ValueError("pod not found to terminate")
        return self.pods[pod_id]

    def _stop(self, pod_id: str) -> dict[str, Any]:
        pod = self._existing(pod_id)
        pod["desiredStatus"] = "EXITED"
        return pod

    def _terminate(self, pod_id: str) -> None:
        self._existing(pod_id)
        self.on_destroy(self.pods.pop(pod_id))


def _card(card: dict[str, Any]) -> dict[str, Any]:
    return {**card, "lowestPrice": lambda info, input=None: {"uninterruptablePrice": card["securePrice"]}}
