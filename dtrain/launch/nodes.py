"""A run on several machines with one folder: what its batch script does on the first of them, before and after.

    nodes begin ─▶ preflight on every node ─▶ dtrain.launch.node on every node ─▶ nodes end
    (a clean folder,   (who cannot reach        (one supervisor each,               (their endings become
     where to meet)     whom)                    an ending of its own)               one exit.json, or another life)

`python -m dtrain.launch.nodes begin RUN_FOLDER NODE...` prints the address and port at which the nodes meet.
`python -m dtrain.launch.nodes end RUN_FOLDER NODE... [--again] [--told] [--note WHY] [--restarts N]` prints `again`
(the job is to be requeued), `restart` (another life in the same job), or the run's exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dtrain.errors import RunFailed
from dtrain.launch.ending import DONE, FAILED, INTERRUPTED, Ending, interrupted, put_aside, put_aside_life
from dtrain.launch.lives import restarts_allowed
from dtrain.launch.network import free_port, link_towards
from dtrain.paths import RunPaths

ALREADY_RUN = 3
"""As the supervisor's: nothing was started."""
LATE_WORD_SECONDS = 3.0
"""Another node's ending, written just now, may reach this node's view of a shared folder a moment later."""
AGAIN, RESTART = "again", "restart"


def begin(paths: RunPaths, nodes: Sequence[str], restarted: bool) -> str | None:
    """Make the folder ready for a life of the run; the meeting point, or None when the run has ended already.

    An interrupted run begins again only when the batch system itself started its job again.
    """
    ended = Ending.read(paths)
    if ended is not None and not (restarted and ended.code == INTERRUPTED):
        return None
    put_aside(paths)
    for left in (paths.run / "nodes").glob("*.json"):
        left.unlink()
    return meeting_point(nodes)


def meeting_point(nodes: Sequence[str]) -> str:
    """`ADDRESS:PORT` on this machine, the first node, as the second one reaches it."""
    address = link_towards(nodes[1]).address if len(nodes) > 1 else "127.0.0.1"
    return joined(address, free_port(address))


def joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def parted(meeting: str) -> tuple[str, int]:
    address, _, port = meeting.rpartition(":")
    return address.strip("[]"), int(port)


@dataclass(frozen=True)
class Verdict:
    """What the batch script knows about the end of its steps."""

    again: bool = False
    """An interrupted run is to go on: no exit.json."""
    told: bool = False
    """The steps were told to stop; a node without an ending did not live to write one."""
    note: str = ""
    """Why an interrupted run does not go on by itself."""
    restarts: int | None = None
    """Lives that failed in this job so far; None where the road cannot begin another one."""


def end(paths: RunPaths, nodes: Sequence[str], verdict: Verdict) -> Ending | str:
    """One ending of the whole run, written to exit.json; AGAIN when it was interrupted and is to go on, RESTART when it
    failed and all nodes begin another life from the last checkpoint."""
    ending = first_ending(paths, wait_for_endings(paths, len(nodes)), nodes, verdict.told)
    if ending.code == FAILED and not verdict.told:
        from dtrain.launch.shortage import after_shortage  # the planner, only for a run that failed

        ending, replanned = after_shortage(paths, ending, may_replan=verdict.restarts is not None)
        if replanned or begins_again(paths, ending, verdict.restarts):
            return RESTART
    if ending.code == INTERRUPTED and verdict.again:
        return AGAIN
    if ending.code == INTERRUPTED and verdict.note:
        ending = replace(ending, reason=f"{ending.reason}; {verdict.note}")
    ending.write(paths)
    return ending


def begins_again(paths: RunPaths, ending: Ending, restarts: int | None) -> bool:
    """Whether a failed run has another life (`max_restarts`); what the last one left is put aside then."""
    if restarts is None or restarts >= restarts_allowed(paths):
        return False
    failed = [one for file in paths.past.glob("*/exit.json") if (one := Ending.read_from(file)) and one.code == FAILED]
    if restarts and failed and ending.step <= max(failed, key=lambda one: one.ended).step:
        return False  # it got no further than the life before
    put_aside_life(paths, ending)
    return True


def wait_for_endings(paths: RunPaths, nodes: int) -> list[Ending | None]:
    deadline = time.monotonic() + LATE_WORD_SECONDS
    while True:
        found = [Ending.read_from(paths.node(number).ending) for number in range(nodes)]
        if None not in found or any(one is not None and one.code == FAILED for one in found):
            return found
        if time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def first_ending(paths: RunPaths, endings: Sequence[Ending | None], nodes: Sequence[str], told: bool = False) -> Ending:
    """What came first of all that went wrong: the other nodes mostly complain about it."""
    wrong = [one for one in endings if one is not None and one.code != DONE]
    if wrong:
        return min(wrong, key=lambda ending: ending.ended)
    silent = [name for name, ending in zip(nodes, endings, strict=True) if ending is None]
    if silent and told:
        return interrupted(paths, "stopped on request")
    if silent:
        who = "the supervisor" if len(nodes) == 1 else f"node {', '.join(silent)}"
        return Ending.now(paths, FAILED, f"{who} ended without a word; see {paths.job_log.name}")
    return Ending.now(paths, DONE, "done")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dtrain.launch.nodes", allow_abbrev=False)
    parser.add_argument("act", choices=["begin", "end"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("nodes", nargs="+")
    parser.add_argument("--again", action="store_true", help="an interrupted run is to go on")
    parser.add_argument("--told", action="store_true", help="the nodes were told to stop")
    parser.add_argument("--note", default="", help="why an interrupted run does not go on by itself")
    parser.add_argument("--restarts", type=int, help="lives that failed in this job so far")
    told = parser.parse_args(arguments)
    paths = RunPaths.of(told.folder)
    if told.act == "begin":
        return _begin(paths, told.nodes)
    with contextlib.redirect_stdout(sys.stderr):  # the batch script reads one word from stdout
        ending = end(paths, told.nodes, Verdict(told.again, told.told, told.note, told.restarts))
    print(ending if isinstance(ending, str) else ending.code)
    return 0


def _begin(paths: RunPaths, nodes: Sequence[str]) -> int:
    try:
        meeting = begin(paths, nodes, restarted=os.environ.get("SLURM_RESTART_COUNT", "0") != "0")
    except RunFailed as error:
        Ending.now(paths, FAILED, str(error), None).write(paths)
        print(error, file=sys.stderr)
        return FAILED
    if meeting is None:
        print("the run has ended already: nothing to do", file=sys.stderr)
        return ALREADY_RUN
    print(meeting)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
