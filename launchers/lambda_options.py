"""`launchers: {lambda: {…}}`, where its API is, and whose key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dtrain.cloud.options import Rule
from dtrain.cloud.provider import (
    AccountClosed,
    NoCapacity,
    NoCredentials,
    NoRights,
    NoSuchMachine,
    ProviderDown,
    QuotaReached,
)

from .rest import Api, closed

NAME = "lambda"
KEY_VARIABLE = "LAMBDA_API_KEY"
API = Api(
    provider=NAME,
    url="https://cloud.lambda.ai",
    url_variable="LAMBDA_CLOUD_BASE_URL",
    key_variable=KEY_VARIABLE,
    keys_page="https://cloud.lambda.ai/api-keys",
    daily_quota="",
    fixes={
        NoCredentials: f"make a key at https://cloud.lambda.ai/api-keys and export {KEY_VARIABLE}=…",
        NoRights: "take a key of an account that may do this: https://cloud.lambda.ai/api-keys",
        AccountClosed: "settle the account's e-mail, payment and billing address at https://cloud.lambda.ai",
        QuotaReached: "end machines you do not need, or ask Lambda's support for more",
        NoSuchMachine: "take another region or another profile",
        NoCapacity: "try another region, or later",
        ProviderDown: "launch again later; https://status.lambda.ai tells of outages",
    },
)


@dataclass(frozen=True)
class LambdaOptions:
    request_seconds: float = 1.0
    """Lambda allows one request in so long (its API's own description)."""
    launch_seconds: float = 12.0
    """And one launch."""


def options_of(told: Mapping[str, Any]) -> LambdaOptions:
    return LambdaOptions(**closed(NAME, told, OWN))


def key_or_refuse() -> str:
    found = os.environ.get(KEY_VARIABLE, "").strip()
    if not found:
        raise API.no_key()
    return found


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 600


_SECONDS: Rule = (_is_seconds, "seconds, 0 to 600")
OWN: dict[str, Rule] = {"request_seconds": _SECONDS, "launch_seconds": _SECONDS}
