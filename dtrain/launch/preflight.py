"""Before training on several machines: can every one reach every other, and add up numbers with them?

Each node starts `python -m dtrain.launch.preflight RUN_FOLDER ADDRESS:PORT NODE...`; the first of them keeps the list.

    hello ─▶ each to each over TCP ─▶ load torch ─▶ all-reduce (gloo, nccl where there are GPUs) ─▶ verdict
    (who is here)  (who cannot reach whom)  (who has it not)  (who did not come back)       (the bad node, by name)

The first two need only the standard library, so that a node is named even where torch or the network library hangs.
The network has 20 s in all; torch may take longer to come from a cold shared disk, which is no node's fault.
What is wrong becomes the ending of the first node: the run never starts.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtrain.errors import RunFailed
from dtrain.launch.ending import FAILED, Ending
from dtrain.launch.network import Link, free_port, link_towards
from dtrain.launch.node import node_number
from dtrain.launch.nodes import joined, parted
from dtrain.launch.spec import LaunchSpec
from dtrain.launch.supervise import speak_into
from dtrain.paths import RunPaths

HELLO_SECONDS = 6.0
"""For all nodes to come: they are started together, and Python starts in a tenth of a second."""
REACH_SECONDS = 2.0
"""For one connection inside a cluster, where a round trip takes less than a millisecond."""
LOAD_SECONDS = 120.0
"""torch from a cold network drive takes tens of seconds, and the ranks need it next."""
REDUCE_SECONDS = 8.0
"""For process groups and two all-reduces. With the first two it stays under 20 s."""
WITH_OTHERS = "with the other nodes"
NUMBERS = 1 << 18
"""In the all-reduce: 1 MiB of float32."""


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
        wrong = {number: self.loaded.get(number, _late()) for number in range(len(self.names))}
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


# --- every node -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """One node in the preflight."""

    number: int
    first: str
    """The first node's name: what tells this preflight from another program at that port."""
    meeting: str
    link: Link
    device: str

    def take_part(self) -> None:
        """Answer the first node until it is satisfied or silent."""
        with listening(self.link.address, 0) as server:
            threading.Thread(target=answer_callers, args=(server,), daemon=True).start()
            line = call(self.meeting, HELLO_SECONDS)
            line.say(
                {"run": self.first, "node": self.number, "address": joined(self.link.address, server.getsockname()[1])}
            )
            told = line.hear(HELLO_SECONDS + 1)
            if told is None or "addresses" not in told:
                return
            line.say({"unreachable": self.unreachable(told["addresses"])})
            if line.hear(REACH_SECONDS * 2 + 1) is not None:
                line.say({"loaded": load_torch()})
            if line.hear(LOAD_SECONDS + 2) is not None:
                line.say({"reduced": reduced(self, told["store"], len(told["addresses"]))})

    def unreachable(self, addresses: Sequence[str]) -> list[int]:
        """The nodes whose port does not answer from here, all asked at once."""
        answers: dict[int, bool] = {}

        def ask(number: int) -> None:
            answers[number] = reaches(addresses[number])

        others = [number for number in range(len(addresses)) if number != self.number]
        threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(REACH_SECONDS + 0.5)
        return [number for number in others if not answers.get(number)]


def answer_callers(server: socket.socket) -> None:
    with suppress(OSError):  # the server is closed
        while True:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"here\n")


def reaches(address: str) -> bool:
    try:
        with socket.create_connection(parted(address), timeout=REACH_SECONDS) as connection:
            return connection.recv(5) == b"here\n"
    except OSError:
        return False


def call(meeting: str, seconds: float) -> Line:
    """The first node, which may listen a moment later than this one calls. RunFailed when it cannot be reached."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return Line(socket.create_connection(parted(meeting), timeout=REACH_SECONDS))
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunFailed(f"{socket.gethostname()} does not reach {meeting}: {error}") from None
            time.sleep(0.1)


def load_torch() -> str | None:
    """None, or what stands in the way. Never later than LOAD_SECONDS."""
    told: list[str | None] = []

    def work() -> None:
        try:
            import torch.distributed  # noqa: F401
        except Exception as error:
            told.append(_first_line(error))
        else:
            told.append(None)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(LOAD_SECONDS)
    return told[0] if told else _late()


def _late() -> str:
    return f"it did not come within {LOAD_SECONDS:g} s"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def reduced(member: Member, store: str, world: int) -> dict[str, Any]:
    """An all-reduce of 1 MiB with all nodes, checked: its seconds, or its error. Never later than REDUCE_SECONDS."""
    stages = [f"meeting {WITH_OTHERS}"]
    told: dict[str, Any] = {}

    def work() -> None:
        try:
            told["seconds"] = all_reduce(member, store, world, stages)
        except Exception as error:
            told["error"] = f"{stages[-1]} failed: {_first_line(error)}"

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(REDUCE_SECONDS)
    return dict(told) or {"error": f"{stages[-1]} took longer than {REDUCE_SECONDS:g} s"}


def all_reduce(member: Member, store: str, world: int, stages: list[str]) -> float:
    """Seconds of the second of two all-reduces, on each kind of memory that the run uses. Raises when it is wrong.

    `stages` is told how far it came.
    """
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    os.environ.setdefault("GLOO_SOCKET_IFNAME", member.link.interface)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={member.link.interface}")
    address, port = parted(store)
    patience = timedelta(seconds=REDUCE_SECONDS)
    meeting = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, world, is_master=member.number == 0, timeout=patience
    )
    backend = "cpu:gloo,cuda:nccl" if member.device == "cuda" else "gloo"
    dist.init_process_group(backend, store=meeting, rank=member.number, world_size=world, timeout=patience)
    seconds = 0.0
    stages.append(f"an all-reduce {WITH_OTHERS}")
    for device in ("cpu", "cuda") if member.device == "cuda" else ("cpu",):
        for _ in range(2):
            numbers = torch.full((NUMBERS,), float(member.number + 1), device=device)
            started = time.perf_counter()
            dist.all_reduce(numbers)
            total = float(numbers.sum().item())
            seconds = time.perf_counter() - started
            if total != NUMBERS * world * (world + 1) / 2:
                raise ArithmeticError(f"the sum over all nodes is wrong on {device}")
    return seconds


# --- the command ------------------------------------------------------------------------------------------------------


def run(paths: RunPaths, number: int, meeting: str, names: Sequence[str]) -> int:
    """This node's part; on the first node also the verdict, which ends the run when it names somebody."""
    device = LaunchSpec.read(paths).device
    member = Member(number, names[0], meeting, link_towards(parted(meeting)[0]), device)
    if number > 0:
        member.take_part()
        return 0
    started = time.monotonic()
    roll = Roll(names)
    speak_into(paths.node(0).log)
    with listening(*parted(meeting)) as server:
        threading.Thread(target=member.take_part, daemon=True).start()
        verdict = keep_roll(server, roll)
    if verdict is None:
        slowest = max(told["seconds"] for told in roll.reduced.values())
        print(
            f"[dtrain] preflight: {len(names)} nodes reach each other; 1 MiB over all in {1000 * slowest:.1f} ms "
            f"({time.monotonic() - started:.1f} s)"
        )
        return 0
    reason = f"preflight: {verdict}"
    print(f"[dtrain] {reason}")
    Ending.now(paths, FAILED, reason).write_to(paths.node(0).ending)
    return FAILED


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="dtrain.launch.preflight", allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("meeting", metavar="ADDRESS:PORT")
    parser.add_argument("names", nargs="+", metavar="NODE")
    parser.add_argument("--node", type=int)
    told = parser.parse_args(arguments)
    try:
        code = run(RunPaths.of(told.folder), node_number(told.node), told.meeting, told.names)
    except RunFailed as error:
        print(f"[dtrain] preflight: {error}", file=sys.stderr)
        code = FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread may still hang inside a network library


if __name__ == "__main__":
    main(sys.argv[1:])
