"""What is said to RunPod's GraphQL: documents with variables, so that no text of ours is ever read as a query."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from dtrain.cloud.provider import Order

from .container import IMAGE, boot_command, shutdown_program
from .runpod_options import ANYWHERE, API, RunpodOptions, options_of

PATH = "/graphql"
SPOT, ON_DEMAND = "podRentInterruptable", "podFindAndDeployOnDemand"
_MADE = "{ id name desiredStatus costPerHr machineId }"
CREATE: Mapping[str, str] = {
    ON_DEMAND: f"mutation Create($input: PodFindAndDeployOnDemandInput!) {{ {ON_DEMAND}(input: $input) {_MADE} }}",
    SPOT: f"mutation Create($input: PodRentInterruptableInput!) {{ {SPOT}(input: $input) {_MADE} }}",
}
PODS = """query Pods { myself { pods {
  id name desiredStatus podType costPerHr lastStatusChange machine { gpuDisplayName }
  runtime { ports { ip isIpPublic privatePort publicPort type } }
} } }"""
TERMINATE = "mutation Terminate($podId: String!) { podTerminate(input: {podId: $podId}) }"
ACCOUNT = "query Account { myself { clientBalance currentSpendPerHr spendLimit } }"
CARDS = """query Cards { gpuTypes {
  id maxGpuCount securePrice communityPrice secureSpotPrice communitySpotPrice
} }"""
"""Only fields that RunPod's own clients ask for: one that does not exist would refuse the whole document."""
AFTER_SENDING = "max_seconds after the request is sent"
"""Stands in a dry run where the request has a time."""


def asked(document: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The body of one request."""
    return {"query": document, **({"variables": dict(variables)} if variables else {})}


def created_by(order: Order) -> str:
    return SPOT if order.offer.spot else ON_DEMAND


def create_body(order: Order, ends: str = AFTER_SENDING) -> dict[str, Any]:
    options = options_of(order.options)
    return asked(CREATE[created_by(order)], {"input": _pod(order, options, ends)})


def end_time(order: Order, now: float) -> str:
    """RFC 3339. RunPod takes it, and in August 2026 did not act on it (runpodctl, pull request 330): nothing relies on
    it."""
    return datetime.fromtimestamp(now + order.max_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _pod(order: Order, options: RunpodOptions, ends: str) -> dict[str, Any]:
    cards = max(1, order.offer.gpus)  # a CPU run on a card that the person named: it pays the card
    pod = {
        "name": order.name,
        "imageName": order.image or IMAGE,
        "gpuTypeId": order.offer.data.get("gpu_type_id", order.offer.machine),
        "gpuCount": cards,
        "cloudType": order.offer.data.get("cloud", options.clouds[0]),
        "containerDiskInGb": order.disk_gib,
        "volumeInGb": 0,  # a volume would outlive a stop and go on costing
        "minVcpuCount": 4 * cards,
        "minMemoryInGb": 16 * cards,
        "ports": "22/tcp",
        "supportPublicIp": True,
        "startSsh": True,
        "env": [{"key": "PUBLIC_KEY", "value": order.public_key}, {"key": "DTRAIN_RUN", "value": order.run_id}],
        "dockerArgs": f"bash -c '{boot_command(order, _shutdown())}; exec {options.start}'",
    }
    if order.offer.region != ANYWHERE:
        pod["dataCenterId"] = order.offer.region
    if not order.offer.spot:
        pod["terminateAfter"] = ends
    else:
        pod["bidPerGpu"] = round(order.offer.usd_per_hour / cards, 4)
    return pod


def _shutdown() -> str:
    return shutdown_program(
        method="POST",
        url=repr(f"{API.endpoint()}{PATH}"),
        body=f'{{"query": {TERMINATE!r}, "variables": {{"podId": seen["RUNPOD_POD_ID"]}}}}',
        key="RUNPOD_API_KEY",
    )
