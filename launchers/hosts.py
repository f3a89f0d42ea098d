"""A host as a person names it: `user@host:port`, or a mapping with a key, a place, a Python of its own. Closed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dtrain.errors import BadInput
from dtrain.launch.machine import DEFAULT_BASE, Machine
from dtrain.launch.tunnel import Host, Trust

_HOST = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[^@:\s\[\]]+))(?::(?P<port>\d+))?")
_HOST_KEY = re.compile(r"[a-z0-9@.-]+ [A-Za-z0-9+/=]+( .*)?")
Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is one, and what is."""


def read_machine(told: Any, common: Mapping[str, Any], where: str, file: str | None = None) -> Machine:
    """One machine; `common` is what all of them have unless they say otherwise. BadInput for what cannot be one."""
    entry = {"host": told} if isinstance(told, str) else told
    if not isinstance(entry, Mapping) or "host" not in entry:
        allowed = "user@host:port, or {host: user@host:port, key: FILE}"
        raise BadInput("not a host", file=file, key=where, value=told, allowed=allowed)
    refuse_unknown(entry, ENTRY_OPTIONS, where, file)
    entry = {key: value for key, value in entry.items() if value is not None}
    for key, value in entry.items():
        checked(ENTRY_OPTIONS[key], value, f"{where}.{key}", file)
    all_of_it = {**common, **entry}
    host = _host(all_of_it["host"], all_of_it.get("key"), all_of_it.get("host_key"), where, file)
    base = str(all_of_it.get("base", DEFAULT_BASE)).rstrip("/")
    return Machine(host, base, all_of_it.get("python", "python3"), all_of_it.get("venv"))


def _host(said: str, key: str | None, host_key: str | None, where: str, file: str | None) -> Host:
    match = _HOST.fullmatch(said)
    port = int(match["port"]) if match and match["port"] else None
    if match is None or said.startswith("-") or (port is not None and not 0 < port < 65_536):
        raise BadInput("not a host", file=file, key=where, value=said, allowed="user@host:port, host, user@[::1]:22")
    if key is not None and not Path(key).expanduser().is_file():
        raise BadInput("there is no such key file", file=file, key=f"{where}.key", value=key)
    return Host(match["v6"] or match["name"], match["user"], port, key, host_key)


def read_trust(given: Mapping[str, Any]) -> Trust:
    return Trust(**{key: given[key] for key in TRUST_OPTIONS if key in given})


# --- what each option may be --------------------------------------------------------------------------------------


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def _is_place(value: Any) -> bool:
    return _is_text(value) and value.startswith(("/", "~/"))


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _is_variable_name(value: Any) -> bool:
    return isinstance(value, str) and value != "" and "=" not in value and "\0" not in value


def _is_environment(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_variable_name(name) and "\0" not in str(told) for name, told in value.items()
    )


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_variable_name, value))


TEXT: Rule = (_is_text, "a text")
PLACE: Rule = (_is_place, "a path on the host that begins with / or ~/")
KEY_LINE: Rule = (lambda value: _is_text(value) and _HOST_KEY.fullmatch(value) is not None, "ssh-ed25519 AAAA…")
FLAG: Rule = (lambda value: isinstance(value, bool), "true or false")
SECONDS: Rule = (_is_seconds, "seconds, 0 or more")
MACHINE_OPTIONS: dict[str, Rule] = {
    "key": (_is_text, "a private key's file here"),
    "base": PLACE,
    "python": (_is_text, "the name or path of a Python on the host"),
    "venv": PLACE,
}
"""For all hosts, or for one in its own entry."""
NAMES: Rule = (_is_names, "[WANDB_API_KEY, HF_TOKEN]: names of environment variables")
ENVIRONMENT: Rule = (_is_environment, "NAME: value pairs")
ENTRY_OPTIONS: dict[str, Rule] = {"host": TEXT, "host_key": KEY_LINE, **MACHINE_OPTIONS}
TRUST_OPTIONS: dict[str, Rule] = {"accept_new_host_keys": FLAG, "connect_seconds": SECONDS, "wait_seconds": SECONDS}


def refuse_unknown(given: Mapping[str, Any], known: Mapping[str, Rule], where: str, file: str | None = None) -> None:
    for key, value in given.items():
        if key not in known:
            raise BadInput(
                f"there is no such option of {where}", file=file, key=f"{where}.{key}", value=value,
                allowed=", ".join(known),
            )  # fmt: skip


def checked(rule: Rule, value: Any, where: str, file: str | None = None) -> None:
    accepts, allowed = rule
    if not accepts(value):
        raise BadInput("not a value for this option", file=file, key=where, value=value, allowed=allowed)
