"""Lambda's API: one request at its pace, and its errors by their code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dtrain.cloud.provider import (
    AccountClosed,
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

from .lambda_options import API, LambdaOptions
from .lambda_pace import Pace
from .rest import Rest

LAUNCH = "/api/v1/instance-operations/launch"
_BY_CODE: dict[str, type[ProviderError]] = {
    "global/invalid-api-key": NoCredentials,
    "global/account-inactive": AccountClosed,
    "global/invalid-address": AccountClosed,
    "global/quota-exceeded": QuotaReached,
    "global/object-does-not-exist": NoSuchMachine,
    "instance-operations/launch/insufficient-capacity": NoCapacity,
    "firewall-rulesets/firewall-ruleset-in-use": Throttled,  # until the machines behind it are really gone
}
"""The codes of Lambda's API description 1.8.3; its messages may change, its codes not."""
_BY_STATUS: dict[int, type[ProviderError]] = {401: NoCredentials, 403: NoRights}


class LambdaApi:
    """Made with the key; every method raises `ProviderError`s only."""

    def __init__(self, key: str, options: LambdaOptions, pace: Pace | None = None) -> None:
        self._rest = Rest(API, key)
        self._options = options
        self._pace = pace or Pace(key)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The `data` of the answer. NoSuchMachine: the thing named is not there."""
        self._pace.wait(self._limits(path))
        changes = method != "GET"
        status, told = self._rest.ask(method, path, body, changes=changes)
        if status < 300 and "data" in told:
            return told["data"]
        raise error_of(status, told.get("error"), changes)

    def _limits(self, path: str) -> dict[str, float]:
        limits = {"request": self._options.request_seconds}
        return limits | ({"launch": self._options.launch_seconds} if path == LAUNCH else {})


def error_of(status: int, error: Any, changes: bool) -> ProviderError:
    """By its code; `provider/…` comes from behind Lambda and says nothing of what was done."""
    unclear: type[ProviderError] = OutcomeUnknown if changes else ProviderDown
    if not isinstance(error, Mapping):
        return API.error(unclear, f"Lambda answered {status} with something that is not its API's: {error}")
    code = str(error.get("code", ""))
    said = " ".join(str(error[part]) for part in ("message", "suggestion") if error.get(part))
    if code.startswith("provider/"):
        return API.error(unclear, f"{code}: {said}")
    return API.error(_BY_CODE.get(code) or _BY_STATUS.get(status, ProviderError), f"{code}: {said}")
