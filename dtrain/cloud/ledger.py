"""What was rented for a run, written before it is asked for: `$DTRAIN_HOME/rentals/RUN_ID.jsonl`, synced lines.

    begun → intended NAME → created NAME → listed NAME → destroying NAME → gone NAME → home → ended
                         ↘ refused NAME

A client that is killed between any two lines leaves a ledger from which `Standing` tells what may exist.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dtrain import paths
from dtrain.cloud.provider import Instance, Order
from dtrain.files import sync_folder

MachineState = Literal["intended", "created", "refused", "destroying", "gone"]
MAY_EXIST = ("intended", "created", "destroying")


def folder() -> Path:
    return paths.home() / "rentals"


@dataclass(frozen=True)
class Rented:
    """One machine of a run, as the ledger tells."""

    name: str
    provider: str
    region: str
    node: int
    attempt: int
    usd_per_hour: float
    state: MachineState
    asked: float
    """When the intent was written, seconds since 1970."""
    told: float
    """When its state was written."""
    instance: Instance | None = None
    order: Mapping[str, Any] = field(default_factory=dict)
    """The machine type and offer, for a second create with the same token."""
    why: str = ""
    """Why it was refused or given back."""
    life: int = 1
    """Of the run, in which it was ordered."""
    made: float = 0.0
    """When the provider said that it exists."""
    listed: bool = False
    """The provider has named it in a list: from then on its absence from one means that it is gone."""

    @property
    def may_exist(self) -> bool:
        return self.state in MAY_EXIST


@dataclass(frozen=True)
class Standing:
    """What a ledger says when it is read from its first line to its last."""

    run_id: str
    launcher: str
    output: str
    """The run's output folder here."""
    machines: Mapping[str, Rented]
    life: int
    """Counts `begun`: a resumed run has another life."""
    home: bool
    """The results of this life are here, verified."""
    ended: bool
    reason: str = ""

    @property
    def may_exist(self) -> list[Rented]:
        return [one for one in self.machines.values() if one.may_exist]

    def attempts(self, node: int) -> int:
        """How many machines were tried for a node, over all lives."""
        return max((one.attempt for one in self.machines.values() if one.node == node), default=0)

    @property
    def of_this_life(self) -> list[Rented]:
        return [one for one in self.machines.values() if one.life == self.life]

    def usd(self, now: float) -> float:
        """What the machines of this life cost until now: from the intent until they were gone."""
        return sum(one.usd_per_hour * _billed_seconds(one, now) / 3600 for one in self.of_this_life)


def _billed_seconds(one: Rented, now: float) -> float:
    if one.state == "refused":
        return 0.0
    end = one.told if one.state == "gone" else now
    return max(0.0, end - one.asked)


class Ledger:
    """Of one run. Appends are synced before they return."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.path = folder() / f"{run_id}.jsonl"

    def begun(self, launcher: str, output: Path) -> None:
        self._add("begun", launcher=launcher, output=str(output))

    def intended(self, order: Order, provider: str) -> None:
        """Before each create."""
        kept: dict[str, Any] = {
            "offer": asdict(order.offer) | {"data": dict(order.offer.data)},
            "max_seconds": order.max_seconds,
        }
        kept["client_address"] = order.client_address
        self._add(
            "intended", name=order.name, provider=provider, region=order.offer.region, node=order.node,
            attempt=order.attempt, usd_per_hour=order.offer.usd_per_hour, order=kept,
        )  # fmt: skip

    def created(self, instance: Instance) -> None:
        self._add("created", name=instance.name, instance=asdict(instance))

    def listed(self, name: str) -> None:
        """The first time that the provider names it in a list."""
        self._add("listed", name=name)

    def refused(self, name: str, why: str) -> None:
        """The provider said no, or the machine never appeared: nothing is billed."""
        self._add("refused", name=name, why=why)

    def destroying(self, name: str, why: str) -> None:
        self._add("destroying", name=name, why=why)

    def gone(self, name: str) -> None:
        """The provider says so."""
        self._add("gone", name=name)

    def home(self) -> None:
        """What this life of the run made is here and verified."""
        self._add("home")

    def ended(self, reason: str) -> None:
        self._add("ended", reason=reason)

    def standing(self) -> Standing | None:
        """None: nothing was ever begun."""
        return replay(self._lines())

    def begun_standing(self) -> Standing:
        """Of a run that has a keeper: `submit` writes the first line before one lives."""
        standing = self.standing()
        assert standing is not None, f"{self.path} has no first line"
        return standing

    def _add(self, event: str, **told: Any) -> None:
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        line = json.dumps({"event": event, "time": round(time.time(), 3), "run_id": self.run_id, **told})
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            # a line that a crash cut in half must not swallow this one
            os.write(handle, f"{line}\n".encode() if _ends_whole(self.path) else f"\n{line}\n".encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        if new:
            sync_folder(self.path.parent)

    def _lines(self) -> Iterator[Mapping[str, Any]]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        for line in text.splitlines():
            try:
                told = json.loads(line)
            except ValueError:
                continue  # cut in half by a crash: what it was about to tell had not happened
            if isinstance(told, dict):
                yield told


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size == 0:
            return True
        stream.seek(size - 1)
        return stream.read(1) == b"\n"


def replay(lines: Iterator[Mapping[str, Any]]) -> Standing | None:
    """Pure: the events in their order → how things stand."""
    begun: Mapping[str, Any] | None = None
    machines: dict[str, Rented] = {}
    life, home, ended, reason = 0, False, False, ""
    for told in lines:
        event = told["event"]
        if event == "begun":
            begun, life, home, ended, reason = told, life + 1, False, False, ""
        elif event == "intended":
            machines[told["name"]] = _intended(told, life)
        elif event == "home":
            home = True
        elif event == "ended":
            ended, reason = True, told["reason"]
        elif told["name"] in machines:
            machines[told["name"]] = _changed(machines[told["name"]], told)
    if begun is None:
        return None
    return Standing(begun["run_id"], begun["launcher"], begun["output"], machines, life, home, ended, reason)


def _intended(told: Mapping[str, Any], life: int) -> Rented:
    return Rented(
        told["name"], told["provider"], told["region"], told["node"], told["attempt"], told["usd_per_hour"],
        "intended", told["time"], told["time"], order=told["order"], life=life,
    )  # fmt: skip


def _changed(one: Rented, told: Mapping[str, Any]) -> Rented:
    if told["event"] == "listed":
        return replace(one, listed=True)
    state: MachineState = told["event"]
    instance = Instance(**told["instance"]) if "instance" in told else one.instance
    made = told["time"] if state == "created" else one.made
    return replace(one, state=state, told=told["time"], instance=instance, why=told.get("why", one.why), made=made)


def all_ledgers() -> list[Ledger]:
    found = sorted(folder().glob("*.jsonl")) if folder().is_dir() else []
    return [Ledger(path.stem) for path in found]
