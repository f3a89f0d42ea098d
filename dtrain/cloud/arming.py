"""Arms the watchdog on machines whose provider has no end of its own for them."""

from __future__ import annotations

import json
import os

from dtrain.cloud import watchdog
from dtrain.cloud.provider import EndsByRequest, Instance, Provider
from dtrain.cloud.run_there import RunThere, Unbootable
from dtrain.errors import LauncherRefused, Unreachable
from dtrain.launch.machine import Remote

BEFORE_SHUTDOWN_SECONDS = 60.0
"""The end is asked for so long before user data halts the machine: that would silence the watchdog, not the bill."""
SAVE_SECONDS = 60.0
"""On top of the ranks' grace: the supervisor's own."""


def arm_watchdogs(rented: RunThere, provider: Provider, limit_seconds: float) -> None:
    """On each machine, where the provider needs one and the person wants it; may be repeated. `limit_seconds`: from now
    on. Unbootable: a machine that would have no end without us."""
    key = provider.abilities.watchdog_key
    if key is None or not rented.options.watchdog or not isinstance(provider, EndsByRequest):
        return
    seconds = max(0.0, limit_seconds - BEFORE_SHUTDOWN_SECONDS)
    instances = [rented.instances[node] for node in sorted(rented.instances)]
    for number, (instance, remote) in enumerate(zip(instances, rented.far.remotes, strict=True)):
        why = _not_armed(remote, _program(rented, provider, key, instance, remote, seconds))
        if why is not None:
            raise Unbootable(f"no watchdog: {why}", [number])


def _not_armed(remote: Remote, script: bytes) -> str | None:
    try:
        answer = remote.tunnel.run((remote.machine.first_python, "-"), script)
    except (LauncherRefused, Unreachable) as error:
        return error.message
    return None if answer.code == 0 else f"{remote.machine.first_python} ends with {answer.code} there"


def _program(
    rented: RunThere, provider: EndsByRequest, key: str, instance: Instance, remote: Remote, seconds: float
) -> bytes:
    save_seconds = min(rented.options.grace_seconds + SAVE_SECONDS, seconds / 2)
    stop = {
        "folder": remote.machine.run_folder(rented.book.run_id), "run_id": rented.book.run_id, "at_once": False,
        "wait_seconds": 0.0,
    }  # fmt: skip
    return watchdog.program(
        provider.ending(instance), {key: os.environ.get(key, "")}, seconds,
        (remote.machine.agent_python, "-P", "-m", "dtrain.launch.agent", "stop"), save_seconds, json.dumps(stop),
    )  # fmt: skip
