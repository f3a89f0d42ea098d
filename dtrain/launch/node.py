"""The supervisor of one node of a run on several: started on each of them, by whatever can start a process there.

`python -m dtrain.launch.node RUN_FOLDER ADDRESS:PORT [--node N]` runs this node's share and writes its ending to
`dtrain/nodes/N.json`; the run's exit.json is made of all of them, by `dtrain.launch.nodes end`.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dtrain.errors import RunFailed
from dtrain.launch import guard
from dtrain.launch.ending import DONE, FAILED, INTERRUPTED, Ending
from dtrain.launch.network import Link, link_towards
from dtrain.launch.nodes import parted
from dtrain.launch.process import adopt_orphans
from dtrain.launch.spec import LaunchSpec, at_place, environment
from dtrain.launch.supervise import StopRequests, Supervision, watched
from dtrain.own_process import speak_into
from dtrain.paths import RunPaths

LOOK_AROUND_SECONDS = 1.0
"""How often a node looks for the endings of the others."""
PARTING_SECONDS = 10.0
"""The first node's torchrun holds the rendezvous: it waits so long for the others to end too."""


@dataclass(frozen=True)
class Place:
    """Where a supervisor stands among the nodes."""

    node: int
    meeting: str
    """Address and port of the rendezvous on the first node."""
    link: Link
    """This node's end of the route to it."""

    @classmethod
    def here(cls, node: int, meeting: str) -> Place:
        return cls(node, meeting, link_towards(parted(meeting)[0]))

    @property
    def is_first(self) -> bool:
        return self.node == 0


class NodeSupervision(Supervision):
    """The watch over one node's ranks, which also ends when another node failed. Only the first prepares the data."""

    def __init__(self, paths: RunPaths, spec: LaunchSpec, stop: StopRequests, place: Place) -> None:
        super().__init__(paths, spec if place.is_first else replace(spec, prepare=()), stop)
        self.place = place
        self.log = paths.node(place.node).log
        self.env = environment(spec, os.environ, place.link.interface)
        self.command = at_place(spec.ranks, place.meeting, place.is_first, place.link.address)
        self.looked = 0.0

    def run(self) -> Ending:
        ending = super().run()
        if self.place.is_first and ending.code in (DONE, INTERRUPTED):
            self._wait_for_others()
        return ending

    def _ending(self) -> Ending | None:
        return super()._ending() or self._another_failed()

    def _another_failed(self) -> Ending | None:
        if time.monotonic() - self.looked < LOOK_AROUND_SECONDS:
            return None
        self.looked = time.monotonic()
        failed = [one for one in self._others() if one is not None and one.code not in (DONE, INTERRUPTED)]
        return Ending.now(self.paths, failed[0].code, failed[0].reason, failed[0].rank) if failed else None

    def _others(self) -> list[Ending | None]:
        numbers = (number for number in range(self.spec.nodes) if number != self.place.node)
        return [Ending.read_from(self.paths.node(number).ending) for number in numbers]

    def _wait_for_others(self) -> None:
        deadline = time.monotonic() + PARTING_SECONDS
        while None in self._others() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _port_was_taken(self) -> bool:
        return self.spec.nodes == 1 and super()._port_was_taken()


def node_number(told: int | None) -> int:
    """`--node`, else what SLURM told this process."""
    number = told if told is not None else os.environ.get("SLURM_NODEID")
    if number is None:
        raise RunFailed("nobody told which node this is", fix="--node N, counted from 0")
    return int(number)


def run_node(paths: RunPaths, number: int, meeting: str) -> Ending:
    """This node's share of the run, from its first process to its ending on disk."""
    files = paths.node(number)
    speak_into(files.log)
    try:
        spec = LaunchSpec.read(paths)
        place = Place.here(number, meeting)
    except RunFailed as error:
        ending = Ending.now(paths, FAILED, f"node {number} ({socket.gethostname()}): {error}")
    else:
        guard.start(spec.run_id)
        adopt_orphans()
        stop = StopRequests()
        stop.listen()
        print(f"node {number} is {socket.gethostname()}, {place.link.address} on {place.link.interface}", flush=True)
        ending = watched(paths, spec, lambda: NodeSupervision(paths, spec, stop, place))
    ending.write_to(files.ending)
    print(f"node {number}: {ending.reason} (exit code {ending.code})", flush=True)
    return ending


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="dtrain.launch.node", allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("meeting", metavar="ADDRESS:PORT")
    parser.add_argument("--node", type=int)
    told = parser.parse_args(arguments)
    return run_node(RunPaths.of(told.folder), node_number(told.node), told.meeting).code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
