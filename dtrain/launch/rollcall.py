"""The first node's part of the preflight: who came, who cannot reach whom, who did not come back, and who is to blame.

Standard library only: it must give its verdict also where torch or a network library hangs.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from dtrain.launch.network import free_port
from dtrain.launch.nodes import joined, parted

HELLO_SECONDS = 6.0
"""For all nodes to come: they are started together, and Python starts in a tenth of a second."""
REACH_SECONDS = 2.0
"""For one connection inside a cluster, where a round trip takes less than a millisecond."""
LOAD_SECONDS = 120.0
"""torch from a cold network drive takes tens of seconds, and the ranks need it next."""
REDUCE_SECONDS = 8.0
"""For process groups and two all-reduces. With the first two it stays under 20 s."""
WITH_OTHERS = "with the other nodes"


def late() -> str:
    return f"it did not come within {LOAD_SECONDS:g} s"


# --- what the nodes tell each other -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A connection that carries one JSON object a line."""

    connection: socket.socket

    def say(self, what: Mapping[str, Any]) -> None:
        self.connection.sendall(json.dumps(what).encode() + b"\n")

    def hear(self, seconds: float) -> dict[str, Any] | None:
        """The next object, or None when none came in time."""
        self.connection.settimeout(max(0.05, seconds))
        heard = b""
        try:
            while not heard.endswith(b"\n"):
                more = self.connection.recv(65536)
                if not more:
                    return None
                heard += more
        except OSError:
            return None
        told: dict[str, Any] = json.loads(heard)
        return told


@contextmanager
def listening(address: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family, backlog=1024) as server:
        yield server


def accept_until(server: socket.socket, deadline: float) -> Iterator[Line]:
    while time.monotonic() < deadline:
        server.settimeout(max(0.01, deadline - time.monotonic()))
        with suppress(TimeoutError):
            connection, _ = server.accept()
            yield Line(connection)


# --- the first node ---------------------------------------------------------------------------------------------------


@dataclass
class Roll:
    """What the first node knows of the nodes, by their number."""

    names: Sequence[str]
    lines: dict[int, Line] = field(default_factory=dict)
    addresses: dict[int, str] = field(default_factory=dict)
    unreachable: dict[int, list[int]] = field(default_factory=dict)
    loaded: dict[int, str | None] = field(default_factory=dict)
    """Whether torch came: None, or what went wrong."""
    reduced: dict[int, dict[str, Any]] = field(default_factory=dict)

    def verdict(self) -> str | None:
        """What is wrong, with the bad node's name; None when nothing is."""
        return self.missing() or self.cut_off() or self.without_torch() or self._silent() or self._wrong()

    def _named(self, numbers: Sequence[int]) -> str:
        return ", ".join(self.names[number] for number in numbers)

    def missing(self) -> str | None:
        missing = [number for number in range(len(self.names)) if number not in self.addresses]
        return f"node {self._named(missing)} does not reach {self.names[0]}" if missing else None

    def cut_off(self) -> str | None:
        pairs = [(one, other) for one, others in self.unreachable.items() for other in others]
        if not pairs:
            return None
        worst = most_in(pairs)
        told = "; ".join(f"{self.names[one]} does not reach {self.names[other]}" for one, other in pairs[:6])
        return f"node {self._named(worst)} is cut off from others: {told}"

    def without_torch(self) -> str | None:
        wrong = {number: self.loaded.get(number, late()) for number in range(len(self.names))}
        told = [f"node {self.names[number]} cannot load torch: {why}" for number, why in wrong.items() if why]
        return "; ".join(told) or None

    def _silent(self) -> str | None:
        silent = [number for number in range(len(self.names)) if number not in self.reduced]
        return f"node {self._named(silent)} did not answer in time in the all-reduce" if silent else None

    def _wrong(self) -> str | None:
        wrong = {number: told["error"] for number, told in self.reduced.items() if told.get("error")}
        if not wrong:
            return None
        own = {number: error for number, error in wrong.items() if not told_of_others(error)} or wrong
        return "; ".join(f"node {self.names[number]}: {error}" for number, error in own.items())


def most_in(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The nodes that most failed pairs have in common."""
    counts: dict[int, int] = {}
    for pair in pairs:
        for number in pair:
            counts[number] = counts.get(number, 0) + 1
    return sorted(number for number, count in counts.items() if count == max(counts.values()))


def told_of_others(error: str) -> bool:
    """An error that may only say that somebody else is not there."""
    return WITH_OTHERS in error


def keep_roll(server: socket.socket, roll: Roll) -> str | None:
    """The first node's part: hear all, tell all, hear again. The verdict."""
    _hear_hellos(server, roll)
    if roll.missing() is None:
        store = joined(parted(roll.addresses[0])[0], free_port(parted(roll.addresses[0])[0]))
        _say_to_all(roll, {"addresses": [roll.addresses[number] for number in range(len(roll.names))], "store": store})
        _hear_all(roll, "unreachable", REACH_SECONDS * 2, roll.unreachable)
        if roll.cut_off() is None:
            _say_to_all(roll, {"load": True})
            _hear_all(roll, "loaded", LOAD_SECONDS + 1, roll.loaded)
            if roll.without_torch() is None:
                _say_to_all(roll, {"reduce": True})
                _hear_all(roll, "reduced", REDUCE_SECONDS + 1, roll.reduced)
    return roll.verdict()


def _say_to_all(roll: Roll, what: Mapping[str, Any]) -> None:
    for line in roll.lines.values():
        with suppress(OSError):  # it is gone, and its silence will tell
            line.say(what)


def _hear_hellos(server: socket.socket, roll: Roll) -> None:
    for line in accept_until(server, time.monotonic() + HELLO_SECONDS):
        told = line.hear(1.0)
        if told is not None and told.get("run") == roll.names[0]:
            roll.lines[told["node"]], roll.addresses[told["node"]] = line, told["address"]
        if len(roll.lines) == len(roll.names):
            return


def _hear_all(roll: Roll, what: str, seconds: float, into: dict[int, Any]) -> None:
    """An answer from every node, as far as they come in time."""
    deadline = time.monotonic() + seconds
    for number, line in roll.lines.items():
        told = line.hear(deadline - time.monotonic())
        if told is not None and what in told:
            into[number] = told[what]
