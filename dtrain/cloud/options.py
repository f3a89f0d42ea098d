"""`launchers.NAME` of a provider: what all of them understand, and what only one does. Closed."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from dtrain.errors import BadInput
from dtrain.launch import secrets
from dtrain.launch.spec import DEFAULT_GRACE_SECONDS

BASE = "/opt/dtrain"
"""dtrain's folder on a rented machine; one logs in as root there."""
Rule = tuple[Callable[[Any], bool], str]
"""Whether a value will do, and what is allowed in words."""


@dataclass(frozen=True)
class CloudOptions:
    max_cost: float | None = None
    """USD for the whole run, machines that were given back included. `--max-cost` says it."""
    max_hours: float | None = None
    """From the first machine to the end. `--max-hours` says it. Neither: three times the estimate and an hour."""
    anywhere: bool = False
    """Where one region has no capacity or quota, take the next cheapest one, then another provider."""
    watchdog: bool = True
    """False: rent without a switch that ends the machine when nobody is there. `--no-watchdog` says it."""
    regions: tuple[str, ...] = ()
    spot: bool = False
    disk_gib: int = 100
    image: str | None = None
    machine: str | None = None
    """The type as the provider calls it; not given: the cheapest that the profile fits."""
    usd_per_hour: float | None = None
    """A price you know better than the table; needed for a machine that it does not have."""
    client_address: str | None = None
    """Who may open SSH, as CIDR. Not given: this machine's address as the world sees it."""
    output: str | None = None
    """s3://…, gs://… or hub:NAME: checkpoints and the model go there from the machine, beside coming home."""
    gate: bool = True
    secrets: tuple[str, ...] = secrets.NAMES
    env: Mapping[str, str] | None = None
    project: bool = False
    grace_seconds: float = DEFAULT_GRACE_SECONDS
    python: str = "python3"
    venv: str | None = None
    """An environment that the image has; not given: one is made."""
    boot_seconds: float = 1200.0
    """How long a machine may take until one can log in; eight GPUs take up to a quarter of an hour."""
    poll_seconds: float = 2.0
    """How often machines and the provider are asked how they stand."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """What only this provider understands."""


def read_options(name: str, told: Mapping[str, Any]) -> CloudOptions:
    """BadInput for a value that cannot be meant. The provider itself refuses keys that nobody knows."""
    given = {key: value for key, value in told.items() if value is not None and key != "extra"}
    for key in given.keys() & OPTIONS.keys():
        _refuse_wrong(name, key, given[key])
    common = {key: _settled(value) for key, value in given.items() if key in OPTIONS}
    return CloudOptions(**common, own={key: value for key, value in given.items() if key not in OPTIONS})


def _refuse_wrong(name: str, key: str, value: Any) -> None:
    accepts, allowed = OPTIONS[key]
    if not accepts(value):
        raise BadInput("not a value for this option", key=f"launchers.{name}.{key}", value=value, allowed=allowed)


def _settled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: str(told) for key, told in value.items()}
    return tuple(value) if isinstance(value, list) else value


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(is_text, value))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _is_network(value: Any) -> bool:
    try:
        return is_text(value) and bool(ipaddress.ip_network(value))
    except ValueError:
        return False


def _is_environment(value: Any) -> bool:
    return isinstance(value, Mapping) and all(is_text(name) and "=" not in name for name in value)


def _is_output(value: Any) -> bool:
    return is_text(value) and value.startswith(("s3://", "gs://", "hub:")) and not value.endswith(("://", ":"))


TEXT: Rule = (is_text, "a text")
TEXTS: Rule = (is_texts, "a list of texts")
FLAG: Rule = (lambda value: isinstance(value, bool), "true or false")
POSITIVE: Rule = (_is_positive, "a number above 0")
OPTIONS: dict[str, Rule] = {
    "max_cost": (_is_positive, "USD, above 0"),
    "max_hours": (_is_positive, "hours, above 0"),
    "anywhere": FLAG,
    "watchdog": FLAG,
    "regions": (is_texts, "[us-east-1, us-west-2]"),
    "spot": FLAG,
    "disk_gib": (lambda value: type(value) is int and value >= 20, "GiB, 20 or more"),
    "image": TEXT,
    "machine": TEXT,
    "usd_per_hour": POSITIVE,
    "client_address": (_is_network, "CIDR, such as 203.0.113.7/32"),
    "output": (_is_output, "s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or hub:OWNER/NAME"),
    "gate": FLAG,
    "secrets": (is_texts, "[WANDB_API_KEY, HF_TOKEN]: names of environment variables"),
    "env": (_is_environment, "NAME: value pairs"),
    "project": FLAG,
    "grace_seconds": (lambda value: value == 0 or _is_positive(value), "seconds, 0 or more"),
    "python": TEXT,
    "venv": (lambda value: is_text(value) and value.startswith("/"), "a path on the machine that begins with /"),
    "boot_seconds": POSITIVE,
    "poll_seconds": POSITIVE,
}
assert set(OPTIONS) == {one.name for one in fields(CloudOptions)} - {"own"}
