"""`launchers: {ssh: {…}}`: on which machines, how to get in, what to bring along. Closed at every depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtrain.errors import BadInput
from dtrain.launch import secrets
from dtrain.launch.hosts_file import read_hosts_file
from dtrain.launch.machine import Machine
from dtrain.launch.spec import DEFAULT_GRACE_SECONDS
from dtrain.launch.tunnel import Trust

from .hosts import (
    ENVIRONMENT,
    FLAG,
    MACHINE_OPTIONS,
    NAMES,
    SECONDS,
    TRUST_OPTIONS,
    Rule,
    checked,
    read_machine,
    read_trust,
    refuse_unknown,
)

WHERE = "launchers.ssh"


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
    refuse_unknown(given, OPTIONS, WHERE)
    for key, value in given.items():
        checked(OPTIONS[key], value, f"{WHERE}.{key}")
    trust = read_trust(given)
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
    made = [read_machine(one, common, f"{where}[{number}]", file) for number, one in enumerate(hosts)]
    _refuse_twins(made, where, file)
    return tuple(sorted(made, key=lambda machine: machine.host.address))


def _is_file_name(said: str) -> bool:
    return "/" in said or said.endswith((".yaml", ".yml", ".txt")) or Path(said).is_file()


def _refuse_twins(machines: list[Machine], where: str, file: str | None) -> None:
    """Two shares of a run on one host would fight over its GPUs; `h` and `h:22` are one."""
    seen = set()
    for machine in machines:
        who = (machine.host.address, machine.host.port or 22)
        if who in seen:
            raise BadInput("the same host twice", file=file, key=where, value=str(machine.host), fix="name it once")
        seen.add(who)


OPTIONS: dict[str, Rule] = {
    "hosts": (
        lambda value: isinstance(value, str | list | tuple) and len(value) > 0,
        "[user@host:port, …] or the path of a hosts file",
    ),
    **MACHINE_OPTIONS,
    **TRUST_OPTIONS,
    "secrets": NAMES,
    "env": ENVIRONMENT,
    "project": FLAG,
    "gate": FLAG,
    "grace_seconds": SECONDS,
}
