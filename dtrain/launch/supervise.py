"""What every launcher starts on a machine: `python -m dtrain.launch.supervise RUN_FOLDER`.

Starts the data preparation and torchrun side by side, passes a request to stop on to the ranks and gives them time to
save, notices within a moment when one of them dies, leaves no process behind, and writes exit.json last.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

from dtrain.errors import DtrainError
from dtrain.files import read_json
from dtrain.launch import guard
from dtrain.launch.ending import (
    DONE,
    FAILED,
    INTERRUPTED,
    Ending,
    interrupted,
    put_aside,
    read_or_none,
)
from dtrain.launch.host_memory import HostMemory
from dtrain.launch.lives import MEETING_SECONDS, OTHERS_STAYED_AWAY, lives
from dtrain.launch.process import adopt_orphans, end_run_processes, send
from dtrain.launch.ranks import Rank, Ranks, first_failure, first_number, how_it_ended, was_interrupted
from dtrain.launch.spec import LaunchSpec, environment, of_life, with_free_port
from dtrain.launch.standing import Supervisor
from dtrain.launch.watchdog import Watchdog, dump_stacks, slowest, verdict
from dtrain.own_process import die_with_parent, speak_into
from dtrain.paths import RunPaths

TICK_SECONDS = 0.05
LAST_WORDS_SECONDS = 0.5
"""After the first dead rank, so that the others' error files tell who was really first."""
PORT_TRIES = 5
ASK_AGAIN_SECONDS = 0.5
RESERVED_BYTES = 64 * 2**10
"""Held by supervisor.lock while the run lives: a full disk must not keep it from saying how it ended."""
ALREADY_RUN = 3
"""This process's own exit code when another supervisor holds the run, or it has ended; nothing was started."""


class StopRequests:
    """SIGTERM or SIGINT asks the ranks to save and leave. SIGQUIT, or a second SIGINT, ends them at once.

    A second SIGTERM does nothing more: `dtrain stop` typed twice must not cost the checkpoint.
    """

    def __init__(self) -> None:
        self.asked = False
        self.at_once = False
        self.first: float | None = None

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._heard)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the client's terminal may close; the run goes on

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.at_once = number == signal.SIGQUIT or (number == signal.SIGINT and self.asked) or self.at_once
        self.asked = True
        self.note()

    def note(self) -> None:
        """The run is stopping, by our signal or because a rank was told directly."""
        if self.first is None:
            self.first = time.monotonic()

    def overdue(self, grace_seconds: float) -> bool:
        return self.first is not None and time.monotonic() - self.first > grace_seconds


class Supervision:
    """One life of a run on this machine, from the first process to its ending."""

    def __init__(self, paths: RunPaths, spec: LaunchSpec, stop: StopRequests, life: int = 0) -> None:
        """`life`: how many this supervisor has watched over before."""
        self.paths = paths
        self.spec = spec
        self.stop = stop
        self.env = environment(spec, os.environ)
        self.command = spec.ranks if not life else of_life(spec.ranks, life)
        self.meets_until = time.monotonic() + MEETING_SECONDS if life and spec.machines > 1 else None
        self.log = paths.launch_log
        self.ranks = Ranks(spec.ranks_per_node, first_number(spec.ranks))
        self.watchdog = Watchdog(paths)
        self.host_memory = HostMemory(paths)
        self.told = 0.0
        """When the ranks were last asked to stop: one that did not listen yet is asked again."""
        self.port_tries = 0

    def run(self) -> Ending:
        self.prepare = self._start(self.spec.prepare) if self.spec.prepare else None
        self._start_torchrun()
        while True:
            self.ranks.update(self.torchrun.pid)
            ending = self._ending()
            if ending is not None:
                return ending
            self.host_memory.look(self.ranks.alive)
            time.sleep(TICK_SECONDS)

    def _start(
        self, command: tuple[str, ...], prepared: Callable[[], None] = die_with_parent
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, preexec_fn=prepared)

    def _start_torchrun(self) -> None:
        sys.stdout.flush()
        self.log_begins = self.log.stat().st_size
        self.torchrun = self._start(self.command, prepared=deaf_child)

    def _ending(self) -> Ending | None:
        """How the run ended, or None while it goes on. The order matters: a cause comes before its effects."""
        return (
            self._killed_on_request()
            or self._prepare_failed()
            or self._rank_failed()
            or self._rank_hangs()
            or self._others_stay_away()
            or self._finished()
            or self._stopping()
        )

    def _killed_on_request(self) -> Ending | None:
        if self.stop.at_once:
            return self._interrupted("killed on request, without saving")
        if self.stop.overdue(self.spec.grace_seconds):
            return self._interrupted(f"did not stop within {self.spec.grace_seconds:g} s and was killed")
        return None

    def _prepare_failed(self) -> Ending | None:
        code = self.prepare.poll() if self.prepare is not None else None
        if code in (None, 0) or self.stop.first is not None:
            return None
        try:
            told = read_json(self.paths.prepare_error)
        except (OSError, ValueError):
            killed = self.host_memory.a_kill if code == -signal.SIGKILL else None
            how = f"out of host memory, {killed}" if killed else f"the process {how_it_ended(code)}"
            return Ending.now(self.paths, FAILED, f"preparing the data: {how}")
        return Ending.now(self.paths, told.get("code") or FAILED, f"preparing the data: {told.get('message')}")

    def _rank_failed(self) -> Ending | None:
        excused = {INTERRUPTED}
        if self.stop.first is not None:
            excused.add(-signal.SIGTERM)  # told before it could listen
        if not self._failed(excused):
            return None
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        while self.ranks.alive and time.monotonic() < deadline:
            time.sleep(TICK_SECONDS)
            self.ranks.update(self.torchrun.pid)
        self.host_memory.explain(self._failed(excused))
        failure = first_failure(self._failed(excused), self.paths)
        return Ending.now(self.paths, failure.code, failure.reason, failure.rank)

    def _failed(self, excused: set[int]) -> list[Rank]:
        """By their exit codes; of ranks whose code torchrun took, those that left their last words."""
        spoke = [rank for rank in self.ranks.unread if self.paths.rank_error(rank.number).exists()]
        return self.ranks.failed(frozenset(excused)) + spoke

    def _rank_hangs(self) -> Ending | None:
        beats = self.watchdog.hung(self.ranks.alive)
        if not beats:
            return None
        frozen = dump_stacks(self.ranks.alive)
        return Ending.now(self.paths, FAILED, verdict(beats, frozen), frozen[0] if frozen else slowest(beats))

    def _others_stay_away(self) -> Ending | None:
        """torchrun starts its ranks when all machines have met."""
        if self.meets_until is None or self.ranks.seen or time.monotonic() < self.meets_until:
            return None
        return Ending.now(self.paths, FAILED, OTHERS_STAYED_AWAY)

    def _finished(self) -> Ending | None:
        if self.ranks.all_ended:
            ranks = list(self.ranks.seen.values())
            if all(rank.exit_code == 0 for rank in ranks):
                return Ending.now(self.paths, DONE, "done")
            if self.stop.first is not None or was_interrupted(ranks):
                return self._interrupted("stopped on request")
        code = self.torchrun.poll()
        if code is None:
            return None
        return self._torchrun_ended(code)

    def _torchrun_ended(self, code: int) -> Ending | None:
        """It outlives its ranks, so here it failed by itself, or took the exit code of a rank before it was read."""
        if self.stop.first is not None:
            return self._interrupted("stopped on request")
        if code == 0:
            return Ending.now(self.paths, DONE, "done")
        if not self.ranks.seen and self.meets_until is not None:
            self._start_torchrun()  # the first machine's torchrun was not there yet, or still that of the last life
            return None
        if not self.ranks.seen and self.port_tries < PORT_TRIES and self._port_was_taken():
            self.port_tries += 1
            print("[dtrain] that port is taken: trying again with a free one", flush=True)
            self.command = with_free_port(self.command)
            self._start_torchrun()
            return None
        unread = self.ranks.unread
        self.host_memory.explain(unread if code > 0 else [])
        if self._failed({INTERRUPTED}):
            return self._rank_failed()
        rank = unread[0].number if unread and code > 0 else None
        who = f"rank {rank} ended unexpectedly" if rank is not None else f"torchrun {how_it_ended(code)}"
        return Ending.now(self.paths, FAILED, f"{who}; see {self.log.name}", rank)

    def _port_was_taken(self) -> bool:
        with self.log.open("rb") as stream:
            stream.seek(self.log_begins)
            said = stream.read().lower()
        return b"address already in use" in said or b"eaddrinuse" in said

    def _stopping(self) -> Ending | None:
        """Pass a request on to the ranks; to hear it twice does them no harm. Not to torchrun: it would end them."""
        if any(rank.exit_code == INTERRUPTED for rank in self.ranks.seen.values()):
            self.stop.note()  # somebody told the ranks directly; they all heard it, and go on to save
            return None
        if not self.stop.asked:
            return None
        if not self.ranks.seen or not has_begun(self.paths):
            return self._interrupted("stopped before training began")
        if time.monotonic() - self.told > ASK_AGAIN_SECONDS:
            send([rank.process for rank in self.ranks.alive], signal.SIGTERM)
            self.told = time.monotonic()
        return None

    def _interrupted(self, how: str) -> Ending:
        return interrupted(self.paths, how)


def deaf_child() -> None:
    """For torchrun: a batch system signals every process of a job, and torchrun, told to stop, would not let ranks
    save. Ranks inherit the deafness until they listen for themselves."""
    die_with_parent()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def has_begun(paths: RunPaths) -> bool:
    """Whether there may be something to save: before, nobody needs to wait for libraries to load."""
    state = read_or_none(paths.state)
    return state is not None and state.get("stage") not in ("starting", "loading")


def supervise(paths: RunPaths, spec: LaunchSpec, stop: StopRequests) -> Ending:
    """Run it to its end, sweep, and write exit.json."""

    def live(number: int) -> Ending:
        return watched(paths, spec, lambda: Supervision(paths, spec, stop, number))

    ending = lives(paths, spec, live, lambda: stop.asked)
    ending = with_room_to_speak(paths, ending)
    ending.write(paths)
    print(f"run {spec.run_id}: {ending.reason} (exit code {ending.code})", flush=True)
    return ending


def with_room_to_speak(paths: RunPaths, ending: Ending) -> Ending:
    """Free what was reserved, so that exit.json and the log's last lines fit on a disk that the run has filled; ranks
    that died of it could not say so."""
    full = shutil.disk_usage(paths.run).free < RESERVED_BYTES
    os.truncate(paths.supervisor_lock, 0)
    if not full or ending.code != FAILED:
        return ending
    return replace(ending, reason=f"{ending.reason}; its disk is full: free space there, then `dtrain resume`")


def watched(paths: RunPaths, spec: LaunchSpec, supervision: Callable[[], Supervision]) -> Ending:
    """What a supervision comes to, after every process of the run on this machine was swept away."""
    try:
        os.chdir(spec.working_directory)
        ending = supervision().run()
    except (DtrainError, OSError) as error:
        with contextlib.suppress(OSError):  # the disk of the log may be full
            print(f"[dtrain] {error}", flush=True)
        ending = Ending.now(paths, FAILED, f"the supervisor: {error}")
    for process in end_run_processes(spec.run_id, below=os.getpid()):
        print(f"[dtrain] process {process.pid} cannot be killed (state {process.state})", flush=True)
    return ending


def lock(paths: RunPaths) -> int | None:
    """The run's lock, held while this process lives; None when another supervisor holds it."""
    handle = os.open(paths.supervisor_lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    os.ftruncate(handle, 0)
    os.pwrite(handle, bytes(RESERVED_BYTES), 0)
    return handle


def own_session() -> None:
    """Signals of the client's terminal do not reach this process; its output goes to launch.log."""
    with contextlib.suppress(PermissionError):  # it leads its session or group already
        os.setsid()


def main(arguments: list[str]) -> int:
    paths = RunPaths.of(Path(arguments[0]).absolute())
    held = lock(paths)
    if held is None or paths.exit.exists():
        return ALREADY_RUN
    own_session()
    put_aside(paths)
    speak_into(paths.launch_log)
    spec = LaunchSpec.read(paths)
    guard.start(spec.run_id, close=(held,))
    adopt_orphans()
    stop = StopRequests()
    stop.listen()
    Supervisor.here(spec.run_id).write(paths)  # from here on the run counts as started
    return supervise(paths, spec, stop).code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
