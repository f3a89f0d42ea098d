"""A run that another machine started becomes known here: `user@host:RUN`, where RUN is an id or a folder there.

Its run.json, config and plan come here with the word on which machines it lies; from then on it is a run like those
that were started from here: status, logs, stop, resume and fetch find it by its id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from dtrain.errors import BadInput
from dtrain.launch import machine, registry
from dtrain.launch.create import create, folder_name
from dtrain.launch.machine import DEFAULT_BASE, Machine, Remote
from dtrain.launch.registry import Entry
from dtrain.launch.tunnel import Host, Lines, Trust, Tunnel
from dtrain.launch.where import Where

_PLACE = re.compile(
    r"(?:(?P<user>[^@:/\s]+)@)?(?P<host>[^@:/\s]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d+))?:(?P<run>[^:]+)"
)
FILES = ("run.json", "config.yaml", "plan.json")


def is_elsewhere(said: str) -> bool:
    """`host:RUN` or `user@host:RUN`, and no folder of that name here."""
    return _PLACE.fullmatch(said) is not None and not Path(said).exists()


def adopt(said: str, into: Path) -> Entry:
    """The entry of a run elsewhere; its folder here is made below `into`. BadInput when there is no such run there,
    Unreachable when the host does not answer."""
    match = _PLACE.fullmatch(said)
    assert match is not None
    port = int(match["port"]) if match["port"] else None
    host = Host(match["host"].strip("[]"), match["user"], port)
    folder = _folder_there(match["run"])
    lines = Lines()
    try:
        files = _read(lines.to(host, Trust()), folder, said)
        about: dict[str, Any] = json.loads(files["run.json"])
        known = registry.read(registry.folder() / f"{about['id']}.json")
        if isinstance(known, Entry):
            return known
        where = _where(about, host, lines)
    finally:
        lines.close()
    output = into / folder_name(about["name"], about["id"])
    own = {**about, "folder": str(output), "options": _options(about, where)}
    create(output, {**files, "run.json": _text(own), "remote.json": _text({"schema_version": 1, **where.as_json()})})
    entry = _entry(own)
    registry.write(entry)
    return entry


def _folder_there(run: str) -> str:
    """An id stands for its place in dtrain's folder there; SFTP begins at the home."""
    folder = run if "/" in run else f"{DEFAULT_BASE}/runs/{run}"
    return str(PurePosixPath(folder)).removeprefix("~/")


def _read(tunnel: Tunnel, folder: str, said: str) -> dict[str, str]:
    with tunnel.files() as sftp:
        try:
            texts = {}
            for name in FILES:
                with sftp.open(f"{folder}/dtrain/{name}") as stream:
                    texts[name] = stream.read().decode()
            return texts
        except FileNotFoundError:
            raise BadInput(
                "there is no run of that name", key="RUN", value=said,
                allowed="user@host:ID, or user@host:/the/run's/folder", fix=f"look there: ls {DEFAULT_BASE}/runs",
            ) from None  # fmt: skip


def _where(about: Mapping[str, Any], host: Host, lines: Lines) -> Where:
    """All its machines, with their paths as they are there. A run on one machine is reached as it was typed."""
    if "machines" not in about:
        raise BadInput(
            f"{about['name']} was started on {host} itself", key="RUN", value=about["id"],
            fix=f"ssh {host} dtrain attach {about['id']}",
        )  # fmt: skip
    machines = [machine.from_json(one) for one in about["machines"]]
    if len(machines) == 1:
        machines = [replace(machines[0], host=host)]
    settled = tuple(_settled(one, lines) for one in machines)
    return Where(about["id"], settled, Trust(), about["grace_seconds"])


def _settled(one: Machine, lines: Lines) -> Machine:
    return machine.settled(one, Remote(one, lines.to(one.host, Trust())).probe())


def _options(about: Mapping[str, Any], where: Where) -> dict[str, Any]:
    """The launcher's options for a submit from here, as a resume makes one."""
    named = [
        {"host": str(one.host), "base": one.base, "python": one.python, "venv": one.venv} for one in where.machines
    ]
    return {**about["options"], about["named_by"]: named if about["named_by"] == "hosts" else named[0]}


def _entry(about: Mapping[str, Any]) -> Entry:
    told = {"profile": "", "created": 0.0, **about}
    return Entry(**{one.name: told[one.name] for one in fields(Entry) if one.name in told})


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
