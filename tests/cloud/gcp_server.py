"""A small Compute Engine of ours: the routes that dtrain uses, with a state. No answer leaves it that the official
client's own types do not parse strictly.

Operations and boots are counted in looks, not in seconds: they are done after so many of them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.cloud import compute_v1

from tests.cloud.served import Asked, Refused, Served

ZONES = {
    "us-central1-a": {"a2-highgpu-1g", "a2-highgpu-8g", "a3-highgpu-1g", "a3-highgpu-8g", "e2-standard-4"},
    "us-central1-b": {"a2-highgpu-1g", "e2-standard-4"},
    "europe-west4-a": {"a2-highgpu-1g", "a2-ultragpu-8g", "e2-standard-4"},
    "asia-east1-c": {"e2-standard-4"},
}
_PLACE = r"/compute/v1/projects/(?P<project>[^/]+)"
_TIME = "2026-11-20T10:00:00.000-08:00"


@dataclass
class Placed:
    """An instance, a rule, a policy: its body as the API gives it out, and how often it was looked at."""

    body: dict[str, Any]
    ends: float
    """When its maxRunDuration is over, by the monotonic clock."""
    listed: float = 0.0
    looks: int = 0
    dies: bool = False


@dataclass
class Operation:
    body: dict[str, Any]
    fails_with: Mapping[str, str] | None = None
    looks: int = 0
    ended: Callable[[], None] = field(default=lambda: None)


class GcpServer(Served):
    def __init__(self) -> None:
        super().__init__()
        self.instances: dict[tuple[str, str], Placed] = {}
        self.firewalls: dict[str, dict[str, Any]] = {}
        self.policies: dict[tuple[str, str], dict[str, Any]] = {}
        self.operations: dict[str, Operation] = {}
        self.by_request_id: dict[str, str] = {}
        self.fail_next: list[tuple[str, str]] = []
        """Code and message of the operations of the next instance inserts: HTTP says 200."""
        self.fail_next_rule: list[tuple[str, str]] = []
        self.looks_until_done = 0
        self.looks_until_running = 1
        self.hidden_seconds = 0.0
        """Eventual consistency: so long a new instance is missing from lists."""
        self.created: list[str] = []
        self.on_created: Callable[[Mapping[str, Any]], str] = lambda body: "203.0.113.9"
        """Boots it; its address."""
        self.on_gone: Callable[[str], None] = lambda name: None
        self.addresses: dict[str, str] = {}
        self._ids = 1000

    # --- for tests --------------------------------------------------------------------------------------------------

    def machines(self) -> list[str]:
        """Names of what is still billed."""
        return [name for (_, name) in self.instances]

    def leftovers(self) -> list[str]:
        return [*self.firewalls, *(name for _, name in self.policies)]

    def shut_down(self, name: str, status: str = "TERMINATED") -> None:
        """A machine that halts itself is stopped, and its disk costs on; a spot machine that is taken is STOPPING."""
        for (_, other), placed in self.instances.items():
            if other == name:
                placed.body["status"] = status

    def forget_everything(self) -> None:
        super().forget_everything()
        for things in (self.instances, self.firewalls, self.policies, self.operations, self.by_request_id):
            things.clear()
        self.created.clear()
        self.fail_next.clear()
        self.hidden_seconds = 0.0

    # --- the API ----------------------------------------------------------------------------------------------------

    def name_of(self, asked: Asked) -> str:
        for method, pattern, route, _ in _ROUTES:
            if method == asked.method and re.fullmatch(_PLACE + pattern, asked.path):
                return route.__name__
        return super().name_of(asked)

    def answer(self, asked: Asked) -> Any:
        self._end_what_is_over()
        for method, pattern, route, kind in _ROUTES:
            match = re.fullmatch(_PLACE + pattern, asked.path)
            if match and asked.method == method:
                said = route(self, asked, **match.groupdict())
                getattr(compute_v1, kind).from_json(json.dumps(said), ignore_unknown_fields=False)
                return said
        raise _error(404, "notFound", f"no such route: {asked.method} {asked.path}")

    def insert_instance(self, asked: Asked, project: str, zone: str) -> Any:
        if (again := self._again(asked)) is not None:
            return again
        body = dict(asked.body)
        name, machine = body["name"], body["machineType"].rsplit("/", 1)[-1]
        if machine not in ZONES.get(zone, set()):
            where = f"projects/{project}/zones/{zone}/machineTypes/{machine}"
            missing = f"Machine type with name '{machine}' does not exist in zone '{zone}'."
            raise _error(400, "invalid", f"Invalid value for field 'resource.machineType': '{where}'. {missing}")
        if (zone, name) in self.instances:
            raise _error(
                409, "alreadyExists", f"The resource 'projects/{project}/zones/{zone}/instances/{name}' already exists"
            )
        self._refuse_missing_policies(body)
        operation = self._operation("insert", f"{_link(project)}/zones/{zone}/instances/{name}", asked, zone=zone)
        if self.fail_next:
            code, message = self.fail_next.pop(0)
            operation.fails_with = {"code": code, "message": message}
            return self._told(operation)
        self.created.append(name)
        ends = time.monotonic() + float(body["scheduling"]["maxRunDuration"]["seconds"])
        told = self._instance(body, project, zone, operation.body["targetId"])
        self.instances[zone, name] = Placed(told, ends, time.monotonic() + self.hidden_seconds)
        self.addresses[name] = self.on_created(body)
        return self._told(operation)

    def list_instances(self, asked: Asked, project: str) -> Any:
        wanted = asked.query.get("filter", "")
        items: dict[str, Any] = {f"zones/{zone}": {"warning": _no_results(zone)} for zone in ZONES}
        for (zone, _), placed in list(self.instances.items()):
            placed.looks += 1
            self._grow(placed)
            if time.monotonic() >= placed.listed and _matches(placed.body.get("labels", {}), wanted):
                scope = items.setdefault(f"zones/{zone}", {})
                scope.pop("warning", None)
                scope.setdefault("instances", []).append(placed.body)
        return {
            "kind": "compute#instanceAggregatedList",
            "id": "list",
            "items": items,
            "selfLink": f"{_link(project)}/aggregated/instances",
        }

    def delete_instance(self, asked: Asked, project: str, zone: str, name: str) -> Any:
        placed = self.instances.get((zone, name))
        if placed is None:
            raise _error(
                404, "notFound", f"The resource 'projects/{project}/zones/{zone}/instances/{name}' was not found"
            )
        placed.body["status"] = "STOPPING"
        operation = self._operation("delete", f"{_link(project)}/zones/{zone}/instances/{name}", asked, zone=zone)
        operation.ended = lambda: self._forget(zone, name)
        placed.looks = 0
        placed.dies = True
        if not self.looks_until_done:
            self._forget(zone, name)
        return self._told(operation)

    def list_machine_types(self, asked: Asked, project: str) -> Any:
        wanted = re.fullmatch(r"name ?= ?(\S+)", asked.query["filter"])
        assert wanted is not None
        items: dict[str, Any] = {}
        for zone, machines in ZONES.items():
            found = [machine for machine in machines if machine == wanted[1]]
            listed = [
                {"kind": "compute#machineType", "name": name, "zone": zone, "guestCpus": 4, "id": "4001"}
                for name in found
            ]
            items[f"zones/{zone}"] = {"machineTypes": listed} if listed else {"warning": _no_results(zone)}
        return {
            "kind": "compute#machineTypeAggregatedList",
            "id": "list",
            "items": items,
            "selfLink": f"{_link(project)}/aggregated/machineTypes",
        }

    def get_operation(self, asked: Asked, project: str, zone: str = "", region: str = "", name: str = "") -> Any:
        operation = self.operations[name]
        operation.looks += 1
        return self._told(operation)

    def insert_firewall(self, asked: Asked, project: str) -> Any:
        if (again := self._again(asked)) is not None:
            return again
        name = asked.body["name"]
        if name in self.firewalls:
            raise _error(
                409, "alreadyExists", f"The resource 'projects/{project}/global/firewalls/{name}' already exists"
            )
        operation = self._operation("insert", f"{_link(project)}/global/firewalls/{name}", asked)
        if self.fail_next_rule:
            code, message = self.fail_next_rule.pop(0)
            operation.fails_with = {"code": code, "message": message}
        else:
            self.firewalls[name] = asked.body
        return self._told(operation)

    def delete_firewall(self, asked: Asked, project: str, name: str) -> Any:
        if self.firewalls.pop(name, None) is None:
            raise _error(404, "notFound", f"The resource 'projects/{project}/global/firewalls/{name}' was not found")
        return self._told(self._operation("delete", f"{_link(project)}/global/firewalls/{name}", asked))

    def list_firewalls(self, asked: Asked, project: str) -> Any:
        wanted = re.fullmatch(r'name eq "(.+)"', asked.query["filter"])
        assert wanted is not None
        items = [body for name, body in self.firewalls.items() if re.fullmatch(wanted[1], name)]
        return {"kind": "compute#firewallList", "id": "list", "items": items}

    def insert_policy(self, asked: Asked, project: str, region: str) -> Any:
        if (again := self._again(asked)) is not None:
            return again
        name = asked.body["name"]
        if (region, name) in self.policies:
            raise _error(
                409,
                "alreadyExists",
                f"The resource 'projects/{project}/regions/{region}/resourcePolicies/{name}' already exists",
            )
        self.policies[region, name] = asked.body
        return self._told(
            self._operation(
                "insert", f"{_link(project)}/regions/{region}/resourcePolicies/{name}", asked, region=region
            )
        )

    def list_policies(self, asked: Asked, project: str) -> Any:
        wanted = asked.query["filter"].removeprefix("name = ")
        items: dict[str, Any] = {"regions/us-west4": {"warning": _no_results("us-west4")}}
        for (region, name), body in self.policies.items():
            if name == wanted:
                items[f"regions/{region}"] = {"resourcePolicies": [body]}
        return {"kind": "compute#resourcePolicyAggregatedList", "id": "list", "items": items}

    def delete_policy(self, asked: Asked, project: str, region: str, name: str) -> Any:
        if (region, name) not in self.policies:
            raise _error(
                404,
                "notFound",
                f"The resource 'projects/{project}/regions/{region}/resourcePolicies/{name}' was not found",
            )
        users = [
            key
            for key, placed in self.instances.items()
            if any(policy.endswith(f"/{name}") for policy in placed.body.get("resourcePolicies", []))
        ]
        if users:
            raise _error(
                400,
                "resourceInUseByAnotherResource",
                f"The resource_policy resource '{name}' is already being used by '{users[0][1]}'",
            )
        del self.policies[region, name]
        return self._told(
            self._operation(
                "delete", f"{_link(project)}/regions/{region}/resourcePolicies/{name}", asked, region=region
            )
        )

    # --- inside -----------------------------------------------------------------------------------------------------

    def _again(self, asked: Asked) -> Any:
        """A request id that was seen gives the first one's operation, whatever the body says now."""
        known = self.by_request_id.get(asked.query.get("requestId", ""))
        return self._told(self.operations[known]) if known else None

    def _operation(self, kind: str, target: str, asked: Asked, **place: str) -> Operation:
        self._ids += 1
        name = f"operation-{self._ids}"
        project = target.split("/projects/")[1].split("/")[0]
        body = {
            "kind": "compute#operation", "id": str(self._ids), "name": name, "operationType": kind,
            "targetLink": target, "targetId": str(7_000_000_000_000_000_000 + self._ids),
            "insertTime": _TIME, "startTime": _TIME, "user": "me@example.com",
            **{key: f"{_link(project)}/{key}s/{value}" for key, value in place.items()},
        }  # fmt: skip
        self.operations[name] = operation = Operation(body)
        if request_id := asked.query.get("requestId"):
            self.by_request_id[request_id] = name
        return operation

    def _told(self, operation: Operation) -> Any:
        if operation.looks < self.looks_until_done:
            return {**operation.body, "status": "RUNNING", "progress": 0}
        operation.ended()
        operation.ended = lambda: None
        done = {**operation.body, "status": "DONE", "progress": 100, "endTime": _TIME}
        if operation.fails_with is None:
            return done
        return {
            **done,
            "httpErrorStatusCode": 503,
            "httpErrorMessage": "SERVICE UNAVAILABLE",
            "error": {"errors": [dict(operation.fails_with)]},
        }

    def _instance(self, body: Mapping[str, Any], project: str, zone: str, target_id: str) -> dict[str, Any]:
        told = {
            **body,
            "kind": "compute#instance",
            "id": target_id,
            "zone": f"{_link(project)}/zones/{zone}",
            "status": "PROVISIONING",
        }
        told["creationTimestamp"], told["selfLink"] = _TIME, f"{_link(project)}/zones/{zone}/instances/{body['name']}"
        told["disks"] = [{**disk, "kind": "compute#attachedDisk", "index": 0} for disk in body["disks"]]
        for disk in told["disks"]:
            del disk["initializeParams"]
        return told

    def _grow(self, placed: Placed) -> None:
        """Each look brings it further: PROVISIONING, then RUNNING with its addresses; a dying one goes."""
        body = placed.body
        if body["status"] == "PROVISIONING" and placed.looks > self.looks_until_running:
            address = self.addresses[body["name"]]
            interface = {**body["networkInterfaces"][0], "networkIP": address}
            interface["accessConfigs"] = [{**interface["accessConfigs"][0], "natIP": address}]
            body.update(status="RUNNING", networkInterfaces=[interface])
        if placed.dies and placed.looks > self.looks_until_done:
            self._forget(body["zone"].rsplit("/", 1)[-1], body["name"])

    def _end_what_is_over(self) -> None:
        """What Compute Engine does by itself: action DELETE after maxRunDuration."""
        for (zone, name), placed in list(self.instances.items()):
            if time.monotonic() > placed.ends:
                self._forget(zone, name)

    def _forget(self, zone: str, name: str) -> None:
        if self.instances.pop((zone, name), None) is not None:
            self.on_gone(name)

    def _refuse_missing_policies(self, body: Mapping[str, Any]) -> None:
        names = {name for _, name in self.policies}
        for policy in body.get("resourcePolicies", []):
            if policy.rsplit("/", 1)[-1] not in names:
                raise _error(404, "notFound", f"The resource '{policy}' was not found")


def _matches(labels: Mapping[str, str], wanted: str) -> bool:
    key, sign, value = re.fullmatch(r"labels\.([a-z-]+)(=|:)(.*)", wanted).groups()  # type: ignore[union-attr]
    return key in labels if (sign, value) == (":", "*") else labels.get(key) == value


def _link(project: str) -> str:
    return f"https://www.googleapis.com/compute/v1/projects/{project}"


def _no_results(zone: str) -> dict[str, Any]:
    data = [{"key": "scope", "value": f"zones/{zone}"}]
    return {
        "code": "NO_RESULTS_ON_PAGE",
        "message": f"There are no results for scope 'zones/{zone}' on this page.",
        "data": data,
    }


def _error(status: int, reason: str, message: str) -> Refused:
    return Refused(status, error_body(status, reason, message))


def error_body(status: int, reason: str, message: str) -> dict[str, Any]:
    """As the API puts it."""
    return {
        "error": {
            "code": status,
            "message": message,
            "errors": [{"message": message, "domain": "global", "reason": reason}],
        }
    }


_ROUTES: list[tuple[str, str, Callable[..., Any], str]] = [
    ("POST", r"/zones/(?P<zone>[^/]+)/instances", GcpServer.insert_instance, "Operation"),
    ("GET", r"/aggregated/instances", GcpServer.list_instances, "InstanceAggregatedList"),
    ("DELETE", r"/zones/(?P<zone>[^/]+)/instances/(?P<name>[^/]+)", GcpServer.delete_instance, "Operation"),
    ("GET", r"/aggregated/machineTypes", GcpServer.list_machine_types, "MachineTypeAggregatedList"),
    ("POST", r"/zones/(?P<zone>[^/]+)/operations/(?P<name>[^/]+)/wait", GcpServer.get_operation, "Operation"),
    ("POST", r"/regions/(?P<region>[^/]+)/operations/(?P<name>[^/]+)/wait", GcpServer.get_operation, "Operation"),
    ("POST", r"/global/operations/(?P<name>[^/]+)/wait", GcpServer.get_operation, "Operation"),
    ("POST", r"/global/firewalls", GcpServer.insert_firewall, "Operation"),
    ("DELETE", r"/global/firewalls/(?P<name>[^/]+)", GcpServer.delete_firewall, "Operation"),
    ("GET", r"/global/firewalls", GcpServer.list_firewalls, "FirewallList"),
    ("GET", r"/aggregated/resourcePolicies", GcpServer.list_policies, "ResourcePolicyAggregatedList"),
    ("POST", r"/regions/(?P<region>[^/]+)/resourcePolicies", GcpServer.insert_policy, "Operation"),
    ("DELETE", r"/regions/(?P<region>[^/]+)/resourcePolicies/(?P<name>[^/]+)", GcpServer.delete_policy, "Operation"),
]
