"""Lambda's API over HTTP: one request at its pace, and its errors as what a person must do next."""

from __future__ import annotations

import importlib.util
import json
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
from dtrain.errors import PartMissing

from .lambda_options import KEY_VARIABLE, LambdaOptions
from .lambda_pace import Pace

LAUNCH = "/api/v1/instance-operations/launch"
_CALL_SECONDS = 60.0
_BY_CODE: dict[str, type[ProviderError]] = {
    "global/invalid-api-key": NoCredentials,
    "global/account-inactive": AccountClosed,
    "global/invalid-address": AccountClosed,
    "global/quota-exceeded": QuotaReached,
    "global/object-does-not-exist": NoSuchMachine,
    "instance-operations/launch/insufficient-capacity": NoCapacity,
}
"""The codes of Lambda's API description 1.8.3; its messages may change, its codes not."""
_BY_STATUS: dict[int, type[ProviderError]] = {401: NoCredentials, 403: NoRights, 429: Throttled}
_FIXES: dict[type[ProviderError], str] = {
    NoCredentials: f"make a key at https://cloud.lambda.ai/api-keys and export {KEY_VARIABLE}=…",
    NoRights: "take a key of an account that may do this: https://cloud.lambda.ai/api-keys",
    AccountClosed: "settle the account's e-mail, payment and billing address at https://cloud.lambda.ai",
    QuotaReached: "end machines you do not need, or ask Lambda's support for more",
    NoSuchMachine: "name another region, or another profile",
    NoCapacity: "try another region, `--anywhere`, or later",
    Throttled: "it is tried again",
    ProviderDown: "it is tried again; https://status.lambda.ai tells of outages",
    OutcomeUnknown: "`dtrain gc --dry-run` lists what exists",
}


class LambdaApi:
    """Made with the key; every method raises `ProviderError`s only."""

    def __init__(self, key: str, options: LambdaOptions, pace: Pace | None = None) -> None:
        self.endpoint = options.endpoint()
        self._headers, self._options = {"Authorization": f"Bearer {key}"}, options
        self._pace = pace or Pace(key)
        _refuse_missing_httpx()

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The `data` of the answer. NoSuchMachine: the thing named is not there."""
        import httpx

        self._pace.wait(self._limits(path))
        spends = method != "GET"
        try:
            answer = httpx.request(
                method, f"{self.endpoint}{path}", json=body, headers=self._headers, timeout=_CALL_SECONDS
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as caught:
            raise _made(ProviderDown, f"no connection to Lambda: {caught}") from caught
        except httpx.HTTPError as caught:
            kind: type[ProviderError] = OutcomeUnknown if spends else ProviderDown
            raise _made(kind, f"no answer from Lambda: {caught or type(caught).__name__}") from caught
        return _read(answer, spends)

    def _limits(self, path: str) -> dict[str, float]:
        limits = {"request": self._options.request_seconds}
        return limits | ({"launch": self._options.launch_seconds} if path == LAUNCH else {})


def _refuse_missing_httpx() -> None:
    if importlib.util.find_spec("httpx") is None:
        raise PartMissing.of("httpx", "lambda", "`--on lambda`")


def _read(answer: Any, spends: bool) -> Any:
    told = _document(answer.text)
    if answer.is_success and "data" in told:
        return told["data"]
    error = told.get("error")
    if isinstance(error, Mapping) and "code" in error:
        raise error_of(answer.status_code, error, spends, answer.headers.get("Retry-After"))
    if answer.status_code == 429:
        raise _throttled("too many requests", answer.headers.get("Retry-After"))
    kind = OutcomeUnknown if spends else ProviderDown
    raise _made(kind, f"Lambda answered {answer.status_code} with something that is not its API's: {answer.text}")


def _document(text: str) -> Mapping[str, Any]:
    try:
        told = json.loads(text)
    except ValueError:
        return {}
    return told if isinstance(told, Mapping) else {}


def error_of(status: int, error: Mapping[str, Any], spends: bool, wait: str | None = None) -> ProviderError:
    code, message = str(error["code"]), str(error.get("message", ""))
    suggestion = str(error.get("suggestion") or "")
    said = " ".join(part for part in (f"{code}: {message}", suggestion) if part)
    if status == 429:
        return _throttled(said, wait)
    if code not in _BY_CODE and (status >= 500 or code.startswith("provider/") or code == "global/internal-error"):
        return _made(OutcomeUnknown if spends else ProviderDown, said)
    return _made(_BY_CODE.get(code) or _BY_STATUS.get(status, ProviderError), said)


def _throttled(said: str, wait: str | None) -> ProviderError:
    error = _made(Throttled, said)
    if wait is not None and wait.isdigit():
        error.retry_seconds = float(wait)
    return error


def _made(kind: type[ProviderError], message: str) -> ProviderError:
    flat = " ".join(message.split())
    flat = flat if len(flat) <= 300 else flat[:300] + " …"
    return kind(flat, key="--on lambda", fix=_FIXES.get(kind, "change what is refused and launch again"))
