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
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.errors import RunFailed
from dtrain.launch import rollcall
from dtrain.launch.ending import FAILED, Ending
from dtrain.launch.network import Link, link_towards
from dtrain.launch.node import node_number
from dtrain.launch.nodes import joined, parted
from dtrain.launch.rollcall import Line, Roll, keep_roll, listening
from dtrain.launch.spec import LaunchSpec
from dtrain.own_process import speak_into
from dtrain.paths import RunPaths

NUMBERS = 1 << 18
"""In the all-reduce: 1 MiB of float32."""


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
            line = call(self.meeting, rollcall.HELLO_SECONDS)
            line.say(
                {"run": self.first, "node": self.number, "address": joined(self.link.address, server.getsockname()[1])}
            )
            told = line.hear(rollcall.HELLO_SECONDS + 1)
            if told is None or "addresses" not in told:
                return
            line.say({"unreachable": self.unreachable(told["addresses"])})
            if line.hear(rollcall.REACH_SECONDS * 2 + 1) is not None:
                line.say({"loaded": load_torch()})
            if line.hear(rollcall.LOAD_SECONDS + 2) is not None:
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
            thread.join(rollcall.REACH_SECONDS + 0.5)
        return [number for number in others if not answers.get(number)]


def answer_callers(server: socket.socket) -> None:
    with suppress(OSError):  # the server is closed
        while True:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"here\n")


def reaches(address: str) -> bool:
    try:
        with socket.create_connection(parted(address), timeout=rollcall.REACH_SECONDS) as connection:
            return connection.recv(5) == b"here\n"
    except OSError:
        return False


def call(meeting: str, seconds: float) -> Line:
    """The first node, which may listen a moment later than this one calls. RunFailed when it cannot be reached."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return Line(socket.create_connection(parted(meeting), timeout=rollcall.REACH_SECONDS))
        except OSError as error:
            if time.monotonic() > deadline:
                raise RunFailed(f"{socket.gethostname()} does not reach {meeting}: {error}") from None
            time.sleep(0.1)


def load_torch() -> str | None:
    """None, or what stands in the way. Never late."""
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
    worker.join(rollcall.LOAD_SECONDS)
    return told[0] if told else rollcall.late()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def reduced(member: Member, store: str, world: int) -> dict[str, Any]:
    """An all-reduce of 1 MiB with all nodes, checked: its seconds, or its error. Never late."""
    stages = [f"meeting {rollcall.WITH_OTHERS}"]
    told: dict[str, Any] = {}

    def work() -> None:
        try:
            told["seconds"] = all_reduce(member, store, world, stages)
        except Exception as error:
            told["error"] = f"{stages[-1]} failed: {_first_line(error)}"

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(rollcall.REDUCE_SECONDS)
    return dict(told) or {"error": f"{stages[-1]} took longer than {rollcall.REDUCE_SECONDS:g} s"}


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
    patience = timedelta(seconds=rollcall.REDUCE_SECONDS)
    meeting = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, world, is_master=member.number == 0, timeout=patience
    )
    backend = "cpu:gloo,cuda:nccl" if member.device == "cuda" else "gloo"
    dist.init_process_group(backend, store=meeting, rank=member.number, world_size=world, timeout=patience)
    seconds = 0.0
    stages.append(f"an all-reduce {rollcall.WITH_OTHERS}")
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
