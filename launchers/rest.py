"""One JSON request to a provider over HTTPS, for providers whose own client is not used; silence told apart from no."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from dtrain.cloud.options import OPTIONS, Rule
from dtrain.cloud.provider import NoCredentials, OutcomeUnknown, ProviderDown, ProviderError, QuotaReached, Throttled
from dtrain.errors import BadInput, PartMissing

CALL_SECONDS = 60.0
TOLD_LETTERS = 300
"""As much of a provider's words as a line bears."""


@dataclass(frozen=True)
class Api:
    """Where a provider's API is and how its errors end."""

    provider: str
    url: str
    url_variable: str
    """Environment variable that names another server: the one the provider's own client reads."""
    key_variable: str
    keys_page: str
    daily_quota: str
    """What an answer of `too many requests` holds where waiting does not help before tomorrow; empty: none does."""
    fixes: Mapping[type[ProviderError], str]

    def error(self, kind: type[ProviderError], words: str) -> ProviderError:
        """In the provider's words, on one line, with what to do."""
        flat = " ".join(words.split())
        flat = flat if len(flat) <= TOLD_LETTERS else flat[:TOLD_LETTERS] + " …"
        return kind(flat, key=f"--on {self.provider}", fix=self.fixes.get(kind, _FIXES.get(kind)))

    def endpoint(self) -> str:
        """Scheme and host. BadInput: the key would travel in the clear."""
        said = (os.environ.get(self.url_variable) or self.url).rstrip("/")
        parts = urlsplit(said)
        if parts.scheme == "https" or parts.hostname in ("127.0.0.1", "::1", "localhost"):
            return said
        raise BadInput("the API key would travel in the clear", key=self.url_variable, value=said, allowed="https://…")

    def no_key(self) -> ProviderError:
        return NoCredentials(
            f"{self.key_variable} is not set", key=f"--on {self.provider}",
            fix=f"make a key at {self.keys_page} and export {self.key_variable}=…",
        )  # fmt: skip


_FIXES: Mapping[type[ProviderError], str] = {
    ProviderError: "change what is refused and launch again",
    ProviderDown: "it was asked again for a while: launch again later",
    Throttled: "it was asked again for a while: launch again later",
    OutcomeUnknown: "`dtrain gc --dry-run` lists what exists",
}


class Rest:
    """Made with a key. Every call raises `ProviderError`s only, and leaves no connection open."""

    def __init__(self, api: Api, key: str) -> None:
        self.api = api
        self._url = api.endpoint()
        self._headers = {"Authorization": f"Bearer {key}"}

    def ask(
        self, method: str, path: str, body: Any = None, query: Mapping[str, str] | None = None, changes: bool = False
    ) -> tuple[int, dict[str, Any]]:
        """Status and document, a refusal's too. `changes`: without an answer it may have been done all the same."""
        httpx = _httpx(self.api.provider)
        url, headers = f"{self._url}{path}", self._headers
        try:
            answer = httpx.request(method, url, json=body, params=query, headers=headers, timeout=CALL_SECONDS)
        except (httpx.ConnectError, httpx.ConnectTimeout) as caught:
            raise self.api.error(ProviderDown, f"no connection to {self.api.provider}: {caught}") from None
        except httpx.HTTPError as caught:
            kind: type[ProviderError] = OutcomeUnknown if changes else ProviderDown
            words = f"no answer from {self.api.provider}: {type(caught).__name__} {caught}"
            raise self.api.error(kind, words) from None
        return answer.status_code, self._document(answer, changes)

    def _document(self, answer: Any, changes: bool) -> dict[str, Any]:
        if answer.status_code == 429:
            raise self._throttled(answer.headers.get("Retry-After"), answer.text)
        told = _parsed(answer.text)
        if told is not None and answer.status_code < 500:
            return told
        kind: type[ProviderError] = OutcomeUnknown if changes else ProviderDown
        what = "with an error of its own" if told is not None else "with something that is not its API's"
        raise self.api.error(kind, f"{self.api.provider} answered {answer.status_code} {what}: {answer.text}")

    def _throttled(self, wait: str | None, text: str) -> ProviderError:
        if self.api.daily_quota and self.api.daily_quota in text:
            return self.api.error(QuotaReached, f"no more requests today: {text}")
        error = self.api.error(Throttled, f"too many requests: {text}")
        if wait is not None and wait.isdigit():
            error.retry_seconds = float(wait)
        return error


def closed(provider: str, told: Mapping[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """What only this provider understands of `launchers.PROVIDER`. BadInput names the key that nobody knows, or what
    its value may be."""
    for key, value in told.items():
        where = f"launchers.{provider}.{key}"
        if key not in rules:
            allowed = ", ".join([*rules, *OPTIONS])
            raise BadInput(f"the {provider} launcher has no such option", key=where, value=value, allowed=allowed)
        accepts, allowed = rules[key]
        if not accepts(value):
            raise BadInput("not a value for this option", key=where, value=value, allowed=allowed)
    return dict(told)


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        told = json.loads(text)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def _httpx(provider: str) -> Any:
    try:
        import httpx
    except ImportError:
        raise PartMissing.of("httpx", provider, f"`--on {provider}`") from None
    return httpx
