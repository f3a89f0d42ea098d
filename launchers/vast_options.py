"""`launchers: {vast: {…}}`, where its API is, and whose key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.cloud.options import FLAG, Rule
from dtrain.cloud.provider import AccountClosed, NoCapacity, NoCredentials, NoRights, NoSuchMachine, QuotaReached

from .rest import Api, closed

NAME = "vast"
CONSOLE = "https://cloud.vast.ai"
API = Api(
    provider=NAME,
    url="https://console.vast.ai",
    url_variable="VAST_URL",
    key_variable="VAST_API_KEY",
    keys_page=f"{CONSOLE}/manage-keys/",
    daily_quota="search_quota_exceeded",
    fixes={
        NoCredentials: f"make a key at {CONSOLE}/manage-keys/ and export VAST_API_KEY=…",
        NoRights: f"take a key that may read and write instances: {CONSOLE}/manage-keys/",
        AccountClosed: f"add credit: {CONSOLE}/billing/",
        NoCapacity: "launch again: another offer is taken, or --anywhere",
        NoSuchMachine: "take another profile, or another provider",
        QuotaReached: "end machines you do not need; searches are counted by the day (UTC)",
    },
)


@dataclass(frozen=True)
class VastOptions:
    verified: bool = True
    """Only hosts that Vast has verified."""
    min_reliability: float = 0.98
    """As Vast measures it: the share of time that a host was up."""


def options_of(told: Mapping[str, Any]) -> VastOptions:
    return VastOptions(**closed(NAME, told, _OWN))


def key() -> str:
    """`VAST_API_KEY`, else the files that Vast's own client writes. NoCredentials."""
    home = Path.home()
    files = (home / ".config" / "vastai" / "vast_api_key", home / ".vast_api_key")
    found = os.environ.get(API.key_variable, "").strip() or next(filter(None, map(_text_of, files)), "")
    if not found:
        raise API.no_key()
    return found


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


_OWN: dict[str, Rule] = {"verified": FLAG, "min_reliability": (_is_share, "0 to 1")}
