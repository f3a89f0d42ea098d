"""How a request is said to Google's official client. Unary calls only: its own waiters ignore another endpoint.

Every method raises `ProviderError`s only. The client is imported when it is first used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from dtrain.errors import PartMissing

from .gcp_answer import call_error
from .gcp_request import Call

_CALL_SECONDS = 30.0
_WAIT_SECONDS = 150.0
"""`operations.wait` answers when the operation is done, else after at most two minutes (its own documentation)."""
_SERVICES = {
    "instances": ("Instances", "Instance"),
    "firewalls": ("Firewalls", "Firewall"),
    "resourcePolicies": ("ResourcePolicies", "ResourcePolicy"),
}
"""Collection of the API → the client's service and type."""


class Compute:
    """Compute Engine for one project."""

    def __init__(self, project: str, endpoint: str | None) -> None:
        self.project = project
        self._api = _official()
        self._endpoint = endpoint
        self._clients: dict[str, Any] = {}

    def insert(self, call: Call) -> Any:
        """The operation; None where a thing of that name is there already."""
        from google.api_core.exceptions import Conflict

        try:
            return self._insert(call)
        except Conflict:
            return None
        except Exception as caught:
            raise call_error(caught, spends=True) from caught

    def wait(self, operation: Any, call: Call) -> Any:
        """The operation as it is when it is done, or after two minutes."""
        service = "ZoneOperations" if call.zone else "RegionOperations" if call.region else "GlobalOperations"
        request = {"project": call.project, "operation": operation.name, **_place(call)}
        try:
            return self._client(service).wait(request=request, **_once(_WAIT_SECONDS))
        except Exception as caught:
            raise call_error(caught, spends=False) from caught

    def instances(self, wanted: str) -> list[Any]:
        """Of every zone, as `compute_v1.Instance`."""
        return [one for scope in self._pages("Instances", wanted).values() for one in scope.instances]

    def zones_with(self, machine: str) -> list[str]:
        pages = self._pages("MachineTypes", f"name = {machine}")
        return sorted(place.removeprefix("zones/") for place, scope in pages.items() if scope.machine_types)

    def delete_instance(self, zone: str, name: str) -> None:
        self._deleted("Instances", {"project": self.project, "zone": zone, "instance": name})

    def delete_rules(self, beginning: str) -> None:
        """The firewall rules whose names begin so. The API's own filter takes a regular expression after `eq`."""
        request = {"project": self.project, "filter": f'name eq "{beginning}.*"'}
        try:
            names = [rule.name for rule in self._client("Firewalls").list(request=request, **_once(_CALL_SECONDS))]
        except Exception as caught:
            raise call_error(caught, spends=False) from caught
        for name in names:
            if name.startswith(beginning):
                self._deleted("Firewalls", {"project": self.project, "firewall": name})

    def delete_placements(self, name: str) -> None:
        """Of that name, in every region. Silent while a machine still uses it."""
        for place, scope in self._pages("ResourcePolicies", f"name = {name}").items():
            for policy in scope.resource_policies:
                request = {
                    "project": self.project,
                    "region": place.removeprefix("regions/"),
                    "resource_policy": policy.name,
                }
                self._deleted("ResourcePolicies", request)

    def _insert(self, call: Call) -> Any:
        """The body goes through the client's own types, which refuse a field they do not know."""
        service, resource = _SERVICES[call.kind]
        body = getattr(self._api, resource).from_json(json.dumps(call.body))
        told = {"project": call.project, "request_id": call.request_id, f"{_snake(resource)}_resource": body}
        request = getattr(self._api, f"Insert{resource}Request")(**told, **_place(call))
        return self._client(service).insert_unary(request=request, **_once(_CALL_SECONDS))

    def _pages(self, service: str, wanted: str) -> dict[str, Any]:
        """All pages of an aggregated list: the client asks for the next one while it is read."""
        request = getattr(self._api, f"AggregatedList{service}Request")(project=self.project, filter=wanted)
        try:
            return dict(self._client(service).aggregated_list(request=request, **_once(_CALL_SECONDS)))
        except Exception as caught:
            raise call_error(caught, spends=False) from caught

    def _deleted(self, service: str, request: Mapping[str, Any]) -> None:
        from google.api_core.exceptions import BadRequest, NotFound

        try:
            self._client(service).delete_unary(request=dict(request), **_once(_CALL_SECONDS))
        except NotFound:
            return
        except Exception as caught:
            if isinstance(caught, BadRequest) and "resourceInUse" in str(caught.errors):
                return
            raise call_error(caught, spends=True) from caught

    def _client(self, service: str) -> Any:
        """Clients share nothing but the credentials; each is made once."""
        if service not in self._clients:
            self._clients[service] = self._new_client(service)
        return self._clients[service]

    def _new_client(self, service: str) -> Any:
        options = {"api_endpoint": self._endpoint} if self._endpoint else None
        return getattr(self._api, f"{service}Client")(credentials=self._credentials(), client_options=options)

    def _credentials(self) -> Any:
        """None: the client's own chain. Over plain http no credential is sent."""
        from google.auth.credentials import AnonymousCredentials

        return AnonymousCredentials() if self._endpoint and self._endpoint.startswith("http://") else None


def _place(call: Call) -> dict[str, str]:
    return {"zone": call.zone} if call.zone else {"region": call.region} if call.region else {}


def _official() -> Any:
    try:
        from google.cloud import compute_v1
    except ImportError:
        raise PartMissing.of("google-cloud-compute", "gcp", "`--on gcp`") from None
    return compute_v1


def _once(seconds: float) -> dict[str, Any]:
    """No retries of its own: who calls decides, and each try is seen."""
    return {"retry": None, "timeout": seconds}


def _snake(resource: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", resource).lower()
