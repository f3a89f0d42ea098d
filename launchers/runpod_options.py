"""`launchers: {runpod: {…}}`, where its API is, and whose key."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.cloud.options import Rule, is_text
from dtrain.cloud.provider import AccountClosed, NoCapacity, NoCredentials, NoRights, NoSuchMachine

from .rest import Api, closed

NAME = "runpod"
ANYWHERE = "any data centre"
"""As an offer's region: RunPod picks one."""
CONSOLE = "https://console.runpod.io"
API = Api(
    provider=NAME,
    url="https://api.runpod.io",
    url_variable="RUNPOD_API_BASE_URL",
    key_variable="RUNPOD_API_KEY",
    keys_page=f"{CONSOLE}/user/settings",
    daily_quota="",
    fixes={
        NoCredentials: f"make a key at {CONSOLE}/user/settings and export RUNPOD_API_KEY=…",
        NoRights: f"give the key read and write access to pods: {CONSOLE}/user/settings",
        AccountClosed: f"add credit or raise the spend limit: {CONSOLE}/user/billing",
        NoCapacity: "try --anywhere, launchers.runpod.cloud=all, or later",
        NoSuchMachine: "take another profile, or another provider",
    },
)


@dataclass(frozen=True)
class RunpodOptions:
    cloud: str = "secure"
    """`secure`: RunPod's data centres. `all`: community machines, too, which are strangers'."""
    start: str = "/start.sh"
    """What the image runs by itself: started after our own first steps, as our command takes its place."""

    @property
    def clouds(self) -> tuple[str, ...]:
        return ("SECURE",) if self.cloud == "secure" else ("SECURE", "COMMUNITY")


def options_of(told: Mapping[str, Any]) -> RunpodOptions:
    return RunpodOptions(**closed(NAME, told, _OWN))


def key() -> str:
    """`RUNPOD_API_KEY`, else the file that RunPod's own client writes. NoCredentials."""
    found = os.environ.get(API.key_variable, "").strip() or _key_in(Path("~/.runpod/config.toml").expanduser())
    if not found:
        raise API.no_key()
    return found


def _key_in(file: Path) -> str:
    try:
        told = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return ""
    profile = told.get("default")
    return str(profile.get("api_key", "")) if isinstance(profile, dict) else ""


_OWN: dict[str, Rule] = {
    "cloud": (lambda value: value in ("secure", "all"), "secure, all"),
    "start": (lambda value: is_text(value) and "'" not in value, "the command that the image starts by itself"),
}
