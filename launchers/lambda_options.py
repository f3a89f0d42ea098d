"""`launchers: {lambda: {…}}`: what only Lambda knows. Closed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from dtrain.cloud.provider import NoCredentials
from dtrain.errors import BadInput

WHERE = "launchers.lambda"
KEY_VARIABLE = "LAMBDA_API_KEY"
ENDPOINT = "https://cloud.lambda.ai"
ENDPOINT_VARIABLE = "LAMBDA_CLOUD_BASE_URL"


@dataclass(frozen=True)
class LambdaOptions:
    api_endpoint: str | None = None
    """Another server than cloud.lambda.ai."""
    request_seconds: float = 1.0
    """Lambda allows one request in so long (its API's own description)."""
    launch_seconds: float = 12.0
    """And one launch."""

    def endpoint(self) -> str:
        """Scheme and host. BadInput: the key would travel in the clear."""
        said = (self.api_endpoint or os.environ.get(ENDPOINT_VARIABLE) or ENDPOINT).rstrip("/")
        parts = urlsplit(said)
        if parts.scheme == "https" or parts.hostname in ("127.0.0.1", "::1", "localhost"):
            return said
        raise BadInput(
            "the API key would travel in the clear", key=f"{WHERE}.api_endpoint", value=said, allowed="https://…"
        )


def key_or_refuse() -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise NoCredentials(
            f"{KEY_VARIABLE} is not set", key="--on lambda",
            fix=f"make a key at https://cloud.lambda.ai/api-keys and export {KEY_VARIABLE}=…",
        )  # fmt: skip
    return key


def read_options(told: Mapping[str, Any]) -> LambdaOptions:
    """BadInput names the key that is not one, or what its value may be."""
    given = {key: value for key, value in told.items() if value is not None}
    for key, value in given.items():
        if key not in _RULES:
            raise BadInput(
                "the lambda launcher has no such option", key=f"{WHERE}.{key}", value=value, allowed=", ".join(_RULES)
            )
        accepts, allowed = _RULES[key]
        if not accepts(value):
            raise BadInput("not a value for this option", key=f"{WHERE}.{key}", value=value, allowed=allowed)
    return LambdaOptions(**given)


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 600


_SECONDS = (_is_seconds, "seconds, 0 to 600")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "api_endpoint": (lambda value: isinstance(value, str) and bool(urlsplit(value).hostname), "https://HOST"),
    "request_seconds": _SECONDS,
    "launch_seconds": _SECONDS,
}
assert set(_RULES) == {field.name for field in fields(LambdaOptions)}
