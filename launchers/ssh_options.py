"""`launchers: {ssh: {…}}`: on which machines, how to get in, what to bring along. Closed at every depth."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtrain.errors import BadInput
from dtrain.launch import secrets
from dtrain.launch.hosts_file import read_hosts_file
from dtrain.launch.machine import DEFAULT_BASE, Machine
from dtrain.launch.spec import DEFAULT_GRACE_SECONDS
from dtrain.launch.tunnel import Host, Trust

WHERE = "launchers.ssh"
_HOST = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[^@:\s\[\]]+))(?::(?P<port>\d+))?")
_HOST_KEY = re.compile(r"[a-z0-9@.-]+ [A-Za-z0-9+/=]+( .*)?")


@dataclass(frozen=True)
class SshOptions:
    machines: tuple[Machine, ...] = ()
    """In the order of their addresses: torch's c10d rendezvous gives rank 0 to the first of them."""
    trust: Trust = field(default_factory=Trust)
    secrets: tuple[str, ...] = secrets.NAMES
    """Names of environment variables that are sent along, where they are set here."""
    env: Mapping[str, str] | None = None
    project: bool = False
    """Send the git-tracked files of the folder this is launched from; the run works in their copy."""
    gate: bool = True
    """Try every machine out before the run starts."""
    grace_seconds: float = DEFAULT_GRACE_SECONDS
    """How long the ranks may take to save once they are told to stop."""


def read_options(told: Mapping[str, Any]) -> SshOptions:
    """Every mistake is a BadInput that names its key and what is allowed."""
    given = {key: value for key, value in told.items() if value is not None}
    _refuse_unknown(given, OPTIONS, WHERE)
    for key, value in given.items():
        _checked(OPTIONS[key], value, f"{WHERE}.{key}")
    trust = Trust(
        **{key: given[key] for key in ("accept_new_host_keys", "connect_seconds", "wait_seconds") if key in given}
    )
    names = tuple(given.get("secrets", secrets.NAMES))
    env = {name: str(value) for name, value in given["env"].items()} if "env" in given else None
    return SshOptions(
        _machines(given), trust, names, env, given.get("project", False), given.get("gate", True),
        given.get("grace_seconds", DEFAULT_GRACE_SECONDS),
    )  # fmt: skip


def _machines(given: Mapping[str, Any]) -> tuple[Machine, ...]:
    hosts, where, file = given.get("hosts", []), f"{WHERE}.hosts", None
    if isinstance(hosts, str) and _is_file_name(hosts):
        file = hosts
        hosts, where = read_hosts_file(Path(hosts).expanduser(), where)
    hosts = [hosts] if isinstance(hosts, str) else hosts
    common = {key: given[key] for key in MACHINE_OPTIONS if key in given}
    made = [_machine(one, common, f"{where}[{number}]", file) for number, one in enumerate(hosts)]
    _refuse_twins(made, where, file)
    return tuple(sorted(made, key=lambda machine: machine.host.address))


def _is_file_name(said: str) -> bool:
    return "/" in said or said.endswith((".yaml", ".yml", ".txt")) or Path(said).is_file()


def _machine(told: Any, common: Mapping[str, Any], where: str, file: str | None) -> Machine:
    entry = {"host": told} if isinstance(told, str) else told
    if not isinstance(entry, Mapping) or "host" not in entry:
        allowed = "user@host:port, or {host: user@host:port, key: FILE}"
        raise BadInput("not a host", file=file, key=where, value=told, allowed=allowed)
    _refuse_unknown(entry, {"host": _TEXT, "host_key": _KEY_LINE, **MACHINE_OPTIONS}, where, file)
    for key, value in entry.items():
        _checked({"host": _TEXT, "host_key": _KEY_LINE, **MACHINE_OPTIONS}[key], value, f"{where}.{key}", file)
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


def _refuse_twins(machines: list[Machine], where: str, file: str | None) -> None:
    """Two shares of a run on one host would fight over its GPUs; `h` and `h:22` are one."""
    seen = set()
    for machine in machines:
        who = (machine.host.address, machine.host.port or 22)
        if who in seen:
            raise BadInput("the same host twice", file=file, key=where, value=str(machine.host), fix="name it once")
        seen.add(who)


# --- what each option may be --------------------------------------------------------------------------------------

Rule = tuple[Callable[[Any], bool], str]


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


_TEXT: Rule = (_is_text, "a text")
_PLACE: Rule = (_is_place, "a path on the host that begins with / or ~/")
_KEY_LINE: Rule = (lambda value: _is_text(value) and _HOST_KEY.fullmatch(value) is not None, "ssh-ed25519 AAAA…")
_FLAG: Rule = (lambda value: isinstance(value, bool), "true or false")
_SECONDS: Rule = (_is_seconds, "seconds, 0 or more")
MACHINE_OPTIONS: dict[str, Rule] = {
    "key": (_is_text, "a private key's file here"),
    "base": _PLACE,
    "python": (_is_text, "the name or path of a Python on the host"),
    "venv": _PLACE,
}
"""For all hosts, or for one in its own entry."""
OPTIONS: dict[str, Rule] = {
    "hosts": (
        lambda value: isinstance(value, str | list | tuple) and len(value) > 0,
        "[user@host:port, …] or the path of a hosts file",
    ),
    **MACHINE_OPTIONS,
    "accept_new_host_keys": _FLAG,
    "connect_seconds": _SECONDS,
    "wait_seconds": _SECONDS,
    "secrets": (_is_names, "[WANDB_API_KEY, HF_TOKEN]: names of environment variables"),
    "env": (_is_environment, "NAME: value pairs"),
    "project": _FLAG,
    "gate": _FLAG,
    "grace_seconds": _SECONDS,
}


def _refuse_unknown(given: Mapping[str, Any], known: Mapping[str, Rule], where: str, file: str | None = None) -> None:
    for key, value in given.items():
        if key not in known:
            raise BadInput(
                "the ssh launcher has no such option", file=file, key=f"{where}.{key}", value=value,
                allowed=", ".join(known),
            )  # fmt: skip


def _checked(rule: Rule, value: Any, where: str, file: str | None = None) -> None:
    accepts, allowed = rule
    if not accepts(value):
        raise BadInput("not a value for this option", file=file, key=where, value=value, allowed=allowed)
