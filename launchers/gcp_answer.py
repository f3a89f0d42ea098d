"""What Compute Engine answers, in our words: instances as `Instance`, errors as what a person must do next."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dtrain.cloud.provider import (
    TAG,
    AccountClosed,
    Instance,
    InstanceState,
    NoCapacity,
    NoCredentials,
    NoRights,
    NoSuchMachine,
    OutcomeUnknown,
    ProviderDown,
    ProviderError,
    QuotaReached,
    Throttled,
)

from .gcp_options import NAME
from .gcp_request import region_of

STATES: dict[str, InstanceState] = {
    "PROVISIONING": "starting", "STAGING": "starting", "PENDING": "starting", "REPAIRING": "starting",
    "RUNNING": "running",
    "STOPPING": "stopping", "PENDING_STOP": "stopping", "SUSPENDING": "stopping", "DEPROVISIONING": "stopping",
    "TERMINATED": "stopped", "SUSPENDED": "stopped",
}  # fmt: skip
"""Instance.Status of the API. TERMINATED is a stopped machine whose disks cost on."""

_QUOTAS = "https://console.cloud.google.com/iam-admin/quotas"
_BY_CODE: dict[str, type[ProviderError]] = {
    "ZONE_RESOURCE_POOL_EXHAUSTED": NoCapacity,
    "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS": NoCapacity,
    "RESOURCE_POOL_EXHAUSTED": NoCapacity,
    "QUOTA_EXCEEDED": QuotaReached,
    "quotaExceeded": QuotaReached,
    "PERMISSIONS_ERROR": NoRights,
    "forbidden": NoRights,
    "accessNotConfigured": NoRights,
    "required": NoCredentials,
    "authError": NoCredentials,
    "billingNotEnabled": AccountClosed,
    "accountDisabled": AccountClosed,
    "RATE_LIMIT_EXCEEDED": Throttled,
    "RESOURCE_OPERATION_RATE_EXCEEDED": Throttled,
    "rateLimitExceeded": Throttled,
    "userRateLimitExceeded": Throttled,
    "INTERNAL_ERROR": ProviderDown,
    "backendError": ProviderDown,
}
"""Codes of operation.error.errors (capitals) and reasons of HTTP errors."""
_BY_STATUS: dict[int, type[ProviderError]] = {401: NoCredentials, 403: NoRights, 429: Throttled}
_FIXES: dict[type[ProviderError], str] = {
    NoCapacity: "try another zone or region, `--anywhere`, or later",
    QuotaReached: f"ask for more at {_QUOTAS}, or take a smaller profile or another region",
    NoSuchMachine: "name another region, or another profile",
    NoCredentials: "gcloud auth application-default login, or point GOOGLE_APPLICATION_CREDENTIALS at a key file",
    NoRights: "grant the role Compute Instance Admin (v1) and Compute Security Admin to who you are logged in as",
    AccountClosed: "open https://console.cloud.google.com/billing and settle the project's billing",
    Throttled: "wait a minute and launch again",
    ProviderDown: "launch again later; https://status.cloud.google.com tells of outages",
    OutcomeUnknown: "`dtrain gc --dry-run` lists what exists",
}
_PERMISSION = re.compile(r"Required '(?P<right>[a-zA-Z.]+)' permission")
_NO_TYPE = re.compile(r"(machineTypes|acceleratorTypes)/|machine type with name", re.IGNORECASE)
_CLOSED = re.compile(r"billing (account|is|has)|delinquent", re.IGNORECASE)


def instance_of(told: Any, project: str) -> Instance:
    """From a `compute_v1.Instance`."""
    labels, zone = dict(told.labels), told.zone.rsplit("/", 1)[-1]
    interface = told.network_interfaces[0] if told.network_interfaces else None
    public = next((config.nat_i_p for config in interface.access_configs), "") if interface else ""
    state = STATES.get(told.status, "starting")
    is_spot = told.scheduling.provisioning_model == "SPOT"
    return Instance(
        provider=NAME, id=str(told.id), name=told.name, run_id=labels.get(TAG, ""),
        node=_number(labels, "dtrain-node", 0), attempt=_number(labels, "dtrain-attempt", 1),
        state=state, reason=told.status_message, preempted=is_spot and state in ("stopping", "stopped"),
        region=region_of(zone), zone=zone, machine=told.machine_type.rsplit("/", 1)[-1],
        address=public or None, private_address=(interface.network_i_p or None) if interface else None,
        console=console(project, zone, told.name),
    )  # fmt: skip


def _number(labels: dict[str, str], key: str, otherwise: int) -> int:
    said = labels.get(key, "")
    return int(said) if said.isdigit() else otherwise


def console(project: str, zone: str, name: str) -> str:
    return f"https://console.cloud.google.com/compute/instancesDetail/zones/{zone}/instances/{name}?project={project}"


# --- errors -------------------------------------------------------------------------------------------------------


def operation_error(operation: Any) -> ProviderError | None:
    """Of an operation that is done. HTTP said 200: only its list of errors tells."""
    found = [(error.code, error.message) for error in operation.error.errors]
    return error_of(found, operation.http_error_status_code) if found else None


def call_error(caught: Exception, spends: bool) -> ProviderError:
    """Of what the official client raised. `spends`: the request makes or ends something, so no answer is no no."""
    from google.api_core import exceptions as api
    from google.auth import exceptions as auth
    from requests import exceptions as http

    unanswered: type[ProviderError] = OutcomeUnknown if spends else ProviderDown
    if isinstance(caught, auth.DefaultCredentialsError | auth.RefreshError):
        return _made(NoCredentials, _first_line(caught))
    if isinstance(caught, api.GoogleAPICallError) and (caught.code or 500) < 500:
        return error_of(_told(caught), int(caught.code))
    if isinstance(caught, api.GoogleAPICallError):
        return _made(unanswered, f"Google answered {caught.code}: {_told(caught)[0][1]}")
    if isinstance(caught, http.ConnectTimeout) or _never_connected(caught):
        return _made(ProviderDown, f"no connection to Google: {_first_line(caught)}")
    return _made(unanswered, f"no answer that can be read from Google: {_first_line(caught)}")


def error_of(found: Sequence[tuple[str, str]], status: int = 0) -> ProviderError:
    """The first error that is known by its code, else what the HTTP status says."""
    message = "; ".join(dict.fromkeys(text for _, text in found))
    if right := _PERMISSION.search(message):
        return _made(NoRights, f"no right to {right['right']}: {message}")
    if _NO_TYPE.search(message) and not any(code in _BY_CODE for code, _ in found if code.isupper()):
        return _made(NoSuchMachine, message)
    if status == 403 and _CLOSED.search(message):
        return _made(AccountClosed, message)
    known = next((_BY_CODE[code] for code, _ in found if code in _BY_CODE), None) or _BY_STATUS.get(
        status, ProviderError
    )
    codes = ", ".join(dict.fromkeys(code for code, _ in found if code))
    return _made(known, f"{codes}: {message}" if codes else message)


def _made(kind: type[ProviderError], message: str) -> ProviderError:
    return kind(_short(message), key="--on gcp", fix=_FIXES.get(kind, "change what is refused and launch again"))


def _told(caught: Any) -> list[tuple[str, str]]:
    """Reason and message of each error; where something in between answered, its text without the address."""
    told = [(one.get("reason", ""), one.get("message", "")) for one in caught.errors if isinstance(one, dict)]
    return told or [("", re.sub(r"^[A-Z]+ https?://\S+: ", "", caught.message))]


def _never_connected(caught: Exception) -> bool:
    return "NewConnectionError" in repr(caught) or "NameResolutionError" in repr(caught)


def _first_line(caught: Exception) -> str:
    return _short(str(caught).strip().split("\n")[0]) or type(caught).__name__


def _short(text: str, most: int = 300) -> str:
    """One line: what answers may be a whole page."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[:most] + " …"
