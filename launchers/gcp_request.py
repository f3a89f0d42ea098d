"""What is asked of Compute Engine for one machine: a pure function of the order.

One machine is an instance and two firewall rules that name it alone: one lets the client's address in, one shuts out
everybody else, also where the network's own rules would let them in. Several nodes are placed near to each other and
let each other in.
"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dtrain.cloud.provider import NoSuchMachine, Offer, Order

from .gcp_options import NAME, GcpOptions

IMAGE = "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2404-nvidia-580"
"""Driver 580 and CUDA 12.9 on Ubuntu 24.04, whose Python is 3.12. Google keeps up its CUDA 12.9 images until August
2028 (Deep Learning VM, release table)."""
CPU_IMAGE = "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64"
_NAMESPACE = uuid.UUID("6f0c4f5e-8d0e-5c1a-9d7b-2f1a4f0e6a11")
"""Any fixed one: it only has to be ours."""
_SHORTEST_SECONDS = 30
"""maxRunDuration is refused below this (Compute Engine, `Limit the run time of a VM`)."""
_OPEN_PRIORITY, _SHUT_PRIORITY = 900, 1000
"""Lower goes first; a network's default rules have 65534."""


@dataclass(frozen=True)
class Call:
    """One unary request: of which kind of resource, where, with which body."""

    kind: str
    """`instances`, `firewalls` or `resourcePolicies`: a collection of the API."""
    project: str
    body: Mapping[str, Any]
    request_id: str
    """Honoured by the API: a second request with it gives the first one's operation."""
    zone: str = ""
    region: str = ""

    @property
    def path(self) -> str:
        place = f"zones/{self.zone}" if self.zone else f"regions/{self.region}" if self.region else "global"
        return f"/compute/v1/projects/{self.project}/{place}/{self.kind}"

    def as_json(self) -> dict[str, Any]:
        return {"method": "POST", "path": self.path, "query": {"requestId": self.request_id}, "body": self.body}


def calls(order: Order, options: GcpOptions) -> list[Call]:
    """In the order they are sent: what costs comes last. NoCredentials: nothing says which project pays."""
    project, zone = options.project_or_refuse(), zone_of(order.offer)
    region = region_of(zone)
    rules = [_firewall(order, options, rule) for rule in _rules(order)]
    made = [Call("firewalls", project, body, _request_id(order, body["name"])) for body in rules]
    if order.nodes > 1:
        # of the run, not of the machine: each node asks for it under a number of its own, and finds it there
        made.append(Call("resourcePolicies", project, _placement(order), _request_id(order, region), region=region))
    instance = _instance(order, options, project, zone)
    return [*made, Call("instances", project, instance, _request_id(order, zone), zone=zone)]


def zone_of(offer: Offer) -> str:
    """NoSuchMachine: a machine whose price a person told, in a region without its zone."""
    zone = offer.zone or offer.region
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", zone):
        raise NoSuchMachine(
            f"{offer.machine} is asked for in {zone}, which is no zone", key=f"launchers.{NAME}.regions",
            fix=f"name the zone: regions: [{zone}-a]",
        )  # fmt: skip
    return zone


def region_of(zone: str) -> str:
    """`us-central1` of `us-central1-a`."""
    return zone.rpartition("-")[0]


def run_tag(run_id: str) -> str:
    """What all machines of a run are tagged with, and the name of their placement."""
    return f"dtrain-{run_id}"


def _request_id(order: Order, what: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"{order.token} {what}"))


def _instance(order: Order, options: GcpOptions, project: str, zone: str) -> dict[str, Any]:
    instance = {
        "name": order.name,
        "machineType": f"zones/{zone}/machineTypes/{order.offer.machine}",
        "labels": {key: value.lower() for key, value in order.tags.items()},
        "tags": {"items": [order.name, run_tag(order.run_id)]},
        "scheduling": _scheduling(order),
        "disks": [_disk(order, options, zone)],
        "networkInterfaces": [_network(order, options)],
        "metadata": {"items": _metadata(order)},
    }
    if order.nodes > 1:
        policy = f"projects/{project}/regions/{region_of(zone)}/resourcePolicies/{run_tag(order.run_id)}"
        instance["resourcePolicies"] = [policy]
    return instance


def _scheduling(order: Order) -> dict[str, Any]:
    """The dead-man switch is here: whatever happens to the client, the machine is deleted after so long."""
    return {
        "provisioningModel": "SPOT" if order.offer.spot else "STANDARD",
        "onHostMaintenance": "TERMINATE",
        "automaticRestart": False,
        "instanceTerminationAction": "DELETE",
        "maxRunDuration": {"seconds": str(max(_SHORTEST_SECONDS, math.ceil(order.max_seconds)))},
    }


def _disk(order: Order, options: GcpOptions, zone: str) -> dict[str, Any]:
    image = order.image or (CPU_IMAGE if order.offer.gpu == "cpu" else IMAGE)
    kind = options.disk_type or disk_type(order.offer.machine)
    made = {
        "sourceImage": image,
        "diskSizeGb": str(order.disk_gib),
        "diskType": f"zones/{zone}/diskTypes/{kind}",
        "labels": {key: value.lower() for key, value in order.tags.items()},
    }
    return {"boot": True, "autoDelete": True, "initializeParams": made}


def disk_type(machine: str) -> str:
    """a3-ultragpu and later take Hyperdisk only (Compute Engine, disk types by machine series)."""
    return "hyperdisk-balanced" if machine.startswith(("a3-ultragpu", "a4")) else "pd-balanced"


def _network(order: Order, options: GcpOptions) -> dict[str, Any]:
    made: dict[str, Any] = {"network": options.network}
    if options.subnetwork:
        made["subnetwork"] = options.subnetwork
    if order.offer.machine.startswith(("a3", "a4")):
        made["nicType"] = "GVNIC"  # these series have no other
    made["accessConfigs"] = [{"name": "External NAT", "type": "ONE_TO_ONE_NAT"}]
    return made


def _metadata(order: Order) -> list[dict[str, str]]:
    """OS Login would ignore the run's key where the project turns it on."""
    told = {
        "startup-script": order.user_data,
        "ssh-keys": f"root:{order.public_key.strip()}",
        "block-project-ssh-keys": "TRUE",
        "enable-oslogin": "FALSE",
    }
    return [{"key": key, "value": value} for key, value in told.items()]


def _rules(order: Order) -> list[tuple[str, dict[str, Any]]]:
    """Each machine has its own: the client's address may be another for the next one."""
    ssh, anything = [{"IPProtocol": "tcp", "ports": ["22"]}], [{"IPProtocol": "all"}]
    rules: list[tuple[str, dict[str, Any]]] = [
        ("open", {"priority": _OPEN_PRIORITY, "sourceRanges": [order.client_address], "allowed": ssh}),
        ("shut", {"priority": _SHUT_PRIORITY, "sourceRanges": ["0.0.0.0/0"], "denied": anything}),
    ]
    near = {"priority": _OPEN_PRIORITY, "sourceTags": [run_tag(order.run_id)], "allowed": anything}
    return [*rules, ("near", near)] if order.nodes > 1 else rules


def _firewall(order: Order, options: GcpOptions, rule: tuple[str, Mapping[str, Any]]) -> dict[str, Any]:
    what, told = rule
    return {
        "name": f"{order.name}-{what}", "network": options.network, "direction": "INGRESS",
        "targetTags": [order.name], **told,
    }  # fmt: skip


def _placement(order: Order) -> dict[str, Any]:
    return {"name": run_tag(order.run_id), "groupPlacementPolicy": {"collocation": "COLLOCATED"}}
