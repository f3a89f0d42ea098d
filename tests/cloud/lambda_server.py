"""A small Lambda Cloud of ours: the routes that dtrain uses, with a state, late addresses and enforced limits.

Where the API's own description lies at hand (`test_lambda.py` says where), every answer is checked against it.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.cloud.served import Asked, Refused, Served

REGIONS = {"us-west-1": "California, USA", "us-east-1": "Virginia, USA", "us-south-1": "Texas, USA"}


@dataclass(frozen=True)
class Kind:
    """An instance type; `regions` have room for it."""

    gpu: str
    gpus: int
    cents: int
    regions: tuple[str, ...] = ()


KINDS = {
    "gpu_1x_h100_pcie": Kind("H100 (80 GB PCIe)", 1, 329, ("us-west-1",)),
    "gpu_1x_h100_sxm5": Kind("H100 (80 GB SXM5)", 1, 429, ("us-west-1", "us-east-1")),
    "gpu_8x_h100_sxm5": Kind("H100 (80 GB SXM5)", 8, 3192, ("us-south-1",)),
    "gpu_8x_a100_80gb_sxm4": Kind("A100 (80 GB SXM4)", 8, 2232),
    "gpu_1x_gh200": Kind("GH200 (96 GB)", 1, 229, ("us-east-1",)),
    "gpu_1x_a10": Kind("A10 (24 GB PCIe)", 1, 129, ("us-east-1",)),
    "cpu_4x_general": Kind("N/A", 0, 20, ("us-west-1", "us-east-1")),
}


@dataclass
class Machine:
    body: dict[str, Any]
    address: str
    listed: float
    rulesets: list[str]
    """Numbers of those that guard it."""
    looks: int = 0
    dying: bool = False


class LambdaServer(Served):
    """`clock` is what its limits are measured by."""

    def __init__(
        self, key: str, clock: Callable[[], float], address_of: Callable[[str], tuple[str, str]] | None = None
    ):
        super().__init__()
        self.key = key
        self.clock = clock
        self.machines_by_id: dict[str, Machine] = {}
        self.keys: dict[str, dict[str, str]] = {}
        self.rulesets: dict[str, dict[str, Any]] = {}
        self.request_seconds, self.launch_seconds = 1.0, 12.0
        self.looks_until_active = 1
        self.looks_until_address = 2
        self.looks_until_gone = 1
        self.hidden_seconds = 0.0
        """Eventual consistency: so long a new machine is missing from lists."""
        self.created: list[str] = []
        self.too_soon = 0
        """How many requests came before their time."""
        self.fail_next: list[tuple[int, str, str]] = []
        """Status, code and message of the next launches."""
        self.on_created: Callable[[Mapping[str, Any]], str] = lambda body: "198.51.100.2"
        """Boots it; its address."""
        self.on_gone: Callable[[str], None] = lambda name: None
        self.checked: Callable[[Asked, int, Any], None] = lambda asked, status, body: None
        """Looks at every answer before it goes out."""
        self._last = {"request": -1e9, "launch": -1e9}

    # --- for tests ----------------------------------------------------------------------------------------------------

    def machines(self) -> list[str]:
        """Names of what is still billed."""
        return [machine.body["name"] for machine in self.machines_by_id.values()]

    def leftovers(self) -> list[str]:
        return [one["name"] for one in (*self.keys.values(), *self.rulesets.values())]

    def forget_everything(self) -> None:
        super().forget_everything()
        self.machines_by_id.clear()
        self.keys.clear()
        self.rulesets.clear()
        self.created.clear()
        self.fail_next.clear()
        self.hidden_seconds = 0.0

    # --- the API ------------------------------------------------------------------------------------------------------

    def name_of(self, asked: Asked) -> str:
        for method, pattern, route in _ROUTES:
            if method == asked.method and re.fullmatch(pattern, asked.path):
                return route.__name__
        return super().name_of(asked)

    def answer(self, asked: Asked) -> Any:
        try:
            said = {"data": self._answer(asked)}
        except Refused as refused:
            self.checked(asked, refused.status, refused.body)
            raise
        self.checked(asked, 200, said)
        return said

    def _answer(self, asked: Asked) -> Any:
        if asked.headers.get("Authorization") != f"Bearer {self.key}":
            raise error(
                401, "global/invalid-api-key", "API key was invalid, expired, or deleted.", "Check your API key."
            )
        self._keep_limits(asked)
        for method, pattern, route in _ROUTES:
            match = re.fullmatch(pattern, asked.path)
            if match and asked.method == method:
                return route(self, asked, **match.groupdict())
        raise error(404, "global/object-does-not-exist", f"no route {asked.path}", "Read the API's description.")

    def _keep_limits(self, asked: Asked) -> None:
        now = self.clock()
        for kind, seconds in self._limits(asked):
            too_soon = now < self._last[kind] + seconds - 1e-6
            self._last[kind] = now
            if too_soon:
                self.too_soon += 1
                body = {"error": {"code": "global/too-many-requests", "message": "Too many requests."}}
                raise Refused(429, body, {"Retry-After": str(round(seconds))})

    def _limits(self, asked: Asked) -> list[tuple[str, float]]:
        limits = [("request", self.request_seconds)]
        return [*limits, ("launch", self.launch_seconds)] if asked.path.endswith("/launch") else limits

    def instance_types(self, asked: Asked) -> Any:
        return {
            name: {
                "instance_type": _type(name),
                "regions_with_capacity_available": [_region(region) for region in kind.regions],
            }
            for name, kind in KINDS.items()
        }

    def list_keys(self, asked: Asked) -> Any:
        return list(self.keys.values())

    def add_key(self, asked: Asked) -> Any:
        if any(key["name"] == asked.body["name"] for key in self.keys.values()):
            raise error(400, "global/invalid-parameters", "An SSH key with this name already exists.")
        key = {"id": uuid.uuid4().hex, "name": asked.body["name"], "public_key": asked.body["public_key"]}
        self.keys[key["id"]] = key
        return key

    def delete_key(self, asked: Asked, number: str) -> Any:
        if self.keys.pop(number, None) is None:
            raise error(400, "global/invalid-parameters", "There is no such SSH key.")
        return {}

    def list_rulesets(self, asked: Asked) -> Any:
        return [{**one, "instance_ids": self._behind(number)} for number, one in self.rulesets.items()]

    def _behind(self, number: str) -> list[str]:
        return [one for one, machine in self.machines_by_id.items() if number in machine.rulesets]

    def add_ruleset(self, asked: Asked) -> Any:
        if asked.body["region"] not in REGIONS:
            raise error(400, "global/invalid-parameters", f"No region {asked.body['region']}.", "Name another.")
        if asked.body["region"] == "us-south-1":
            raise error(400, "global/invalid-parameters", "Firewall rules do not apply to us-south-1.", "None.")
        if any(one["name"] == asked.body["name"] for one in self.rulesets.values()):
            raise error(409, "global/duplicate", "A ruleset with this name exists.", "Take another name.")
        number = uuid.uuid4().hex
        made = {"id": number, **asked.body, "region": _region(asked.body["region"])}
        self.rulesets[number] = {**made, "created": "2026-11-23T19:15:00Z", "instance_ids": []}
        return self.rulesets[number]

    def delete_ruleset(self, asked: Asked, number: str) -> Any:
        if number not in self.rulesets:
            raise error(404, "global/object-does-not-exist", "Firewall ruleset does not exist.", "Check its id.")
        if self._behind(number):
            message = "Firewall ruleset is in use by one or more instances."
            raise error(400, "firewall-rulesets/firewall-ruleset-in-use", message, "Terminate them.")
        del self.rulesets[number]
        return {}

    def launch(self, asked: Asked) -> Any:
        if self.fail_next:
            status, code, message = self.fail_next.pop(0)
            raise error(status, code, message, "Do something about it.")
        body = asked.body
        kind, region = body["instance_type_name"], body["region_name"]
        if kind not in KINDS or region not in REGIONS:
            raise error(404, "global/object-does-not-exist", f"{kind} in {region} does not exist", "Name another.")
        if not set(body["ssh_key_names"]) <= {key["name"] for key in self.keys.values()}:
            raise error(400, "global/object-does-not-exist", "The SSH key does not exist", "Register it.")
        rulesets = [one["id"] for one in body.get("firewall_rulesets", [])]
        if any(self.rulesets[one]["region"]["name"] != region for one in rulesets):
            raise error(400, "global/invalid-parameters", "The ruleset is of another region.", "Name another.")
        if region not in KINDS[kind].regions:
            message = "Not enough capacity to fulfill launch request."
            raise error(400, "instance-operations/launch/insufficient-capacity", message, "Choose another region.")
        number = uuid.uuid4().hex
        self.created.append(body["name"])
        listed = time.monotonic() + self.hidden_seconds
        self.machines_by_id[number] = Machine(_instance(number, body), self.on_created(body), listed, rulesets)
        return {"instance_ids": [number]}

    def list_instances(self, asked: Asked) -> Any:
        for number, machine in list(self.machines_by_id.items()):
            machine.looks += 1
            self._grow(number, machine)
        return [one.body for one in self.machines_by_id.values() if time.monotonic() >= one.listed]

    def terminate(self, asked: Asked) -> Any:
        numbers = asked.body["instance_ids"]
        missing = [number for number in numbers if number not in self.machines_by_id]
        if missing:
            raise error(404, "global/object-does-not-exist", "Specified instance does not exist.", "Check the id.")
        for number in numbers:
            machine = self.machines_by_id[number]
            machine.dying, machine.looks = True, 0
            machine.body["status"] = "terminating"
        return {"terminated_instances": [self.machines_by_id[number].body for number in numbers]}

    def _grow(self, number: str, machine: Machine) -> None:
        """Each look brings it further: booting, active, then its address; a dying one goes."""
        if machine.dying:
            if machine.looks > self.looks_until_gone:
                del self.machines_by_id[number]
                self.on_gone(machine.body["name"])
            return
        if machine.looks > self.looks_until_active and machine.body["status"] == "booting":
            machine.body["status"] = "active"
        if machine.looks > self.looks_until_address and "ip" not in machine.body:
            machine.body["ip"] = machine.body["private_ip"] = machine.address


def _instance(number: str, body: Mapping[str, Any]) -> dict[str, Any]:
    no = {"available": False, "reason_code": "vm-has-not-launched", "reason_description": "It has not launched."}
    actions = dict.fromkeys(("migrate", "rebuild", "restart", "cold_reboot", "terminate"), no)
    return {
        "id": number, "name": body["name"], "status": "booting", "ssh_key_names": body["ssh_key_names"],
        "file_system_names": [], "region": _region(body["region_name"]), "actions": actions, "tags": body["tags"],
        "instance_type": _type(body["instance_type_name"]),
    }  # fmt: skip


def _type(name: str) -> dict[str, Any]:
    kind = KINDS[name]
    specs = {"vcpus": 26, "memory_gib": 200, "storage_gib": 1024, "gpus": kind.gpus}
    return {
        "name": name, "description": f"{kind.gpus}x {kind.gpu}", "gpu_description": kind.gpu,
        "price_cents_per_hour": kind.cents, "specs": specs,
    }  # fmt: skip


def _region(name: str) -> dict[str, str]:
    return {"name": name, "description": REGIONS[name]}


def error(status: int, code: str, message: str, suggestion: str | None = None) -> Refused:
    told = {"code": code, "message": message}
    return Refused(status, {"error": told | ({"suggestion": suggestion} if suggestion else {})})


_ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/api/v1/instance-types", LambdaServer.instance_types),
    ("GET", "/api/v1/ssh-keys", LambdaServer.list_keys),
    ("POST", "/api/v1/ssh-keys", LambdaServer.add_key),
    ("DELETE", "/api/v1/ssh-keys/(?P<number>[^/]+)", LambdaServer.delete_key),
    ("GET", "/api/v1/firewall-rulesets", LambdaServer.list_rulesets),
    ("POST", "/api/v1/firewall-rulesets", LambdaServer.add_ruleset),
    ("DELETE", "/api/v1/firewall-rulesets/(?P<number>[^/]+)", LambdaServer.delete_ruleset),
    ("POST", "/api/v1/instance-operations/launch", LambdaServer.launch),
    ("GET", "/api/v1/instances", LambdaServer.list_instances),
    ("POST", "/api/v1/instance-operations/terminate", LambdaServer.terminate),
]
