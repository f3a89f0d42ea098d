"""A run on machines that are reached over SSH, for launchers: get them ready, start it, ask how it stands, stop it.

    ready ──▶ place ──▶ gate ──▶ start          nothing runs anywhere before every machine passed the gate
    (look at each     (files by        (one supervisor on each; several of them
     machine, make     checksum, the    meet at an address of the first)
     environments)     run's folder)

The local folder follows the run's own one (`mirror`), so whatever reads a run's folder works for these runs too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from dtrain.errors import LauncherRefused, Unreachable
from dtrain.launch import gate, runlogs
from dtrain.launch.agent import PLACED
from dtrain.launch.api import Status
from dtrain.launch.bundle import Input, Shipped, shipped
from dtrain.launch.ending import Ending, last_checkpoint
from dtrain.launch.far_results import RESULTS_SECONDS, Results, is_share, results_of
from dtrain.launch.fetch import Fetched, bring_home
from dtrain.launch.machine import Remote
from dtrain.launch.mirror import Mirror, last_ended
from dtrain.launch.spec import LaunchSpec, at_place
from dtrain.launch.tunnel import Lines
from dtrain.launch.where import Where
from dtrain.paths import RunPaths

GATE_SECONDS = 180.0
"""torch takes half a minute to load on a cold disk, and CUDA some seconds a card."""
STOP_SECONDS = 60.0
"""Beyond the time that ranks have to save."""
PARTING_SECONDS = 15.0
"""Once the ranks of the first machine have saved and left, for those of the others to do so, too."""
T = TypeVar("T")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Share:
    """What one machine is given of a run."""

    files: Mapping[str, str]
    """Name in the run's output folder → content."""
    spec: LaunchSpec
    inputs: Sequence[Shipped]


@dataclass(frozen=True)
class Needs:
    """What the machines must be fit for."""

    plan: Mapping[str, Any]
    device: str
    ranks: int
    """On each machine."""


class Unfit(LauncherRefused):
    """Machines that did not pass the gate; nothing was started."""

    def __init__(self, message: str, numbers: Sequence[int]) -> None:
        super().__init__(message, fix="nothing was started")
        self.numbers = tuple(numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        return Unfit, (self.message, self.numbers)


class Far:
    """A run on its machines, through lines that are kept open."""

    def __init__(self, where: Where, paths: RunPaths, lines: Lines) -> None:
        self.where = where
        self.paths = paths
        self.remotes = [Remote(machine, lines.to(machine.host, where.trust)) for machine in where.machines]
        self.mirror = Mirror(paths, where.names)

    # --- starting ---

    def start(self, shares: Sequence[Share], secrets: Mapping[str, str], needs: Needs | None) -> None:
        """Place it on every machine, let them pass the gate (with `needs`), start it. May be repeated: a run that lives
        is left alone.

        LauncherRefused: nothing runs. Unreachable: something may, and the local folder knows where.
        """
        self.mirror.begin_anew()
        self.where.note(self.paths)
        try:
            self._make_ready(shares, needs)
        except Unreachable as error:
            raise LauncherRefused(error.message, fix="nothing was started") from None
        self._start_all(secrets)

    def _make_ready(self, shares: Sequence[Share], needs: Needs | None) -> None:
        after = last_ended(self.paths)
        if after is not None and len(self.remotes) > 1:
            shares = self._with_checkpoint(shares)
        states = self._on_each(lambda number: self._place(number, shares[number], after))
        fresh = all(state == PLACED for state in states)
        _refuse_half_ended(states, self.where.names)
        if needs is not None and fresh:
            self._pass_gate(needs)
        meeting = self._meet(shares) if PLACED in states and len(states) > 1 else None
        if needs is not None and fresh and meeting is not None:
            self._reach_each_other(meeting)

    def _place(self, number: int, share: Share, after: float | None) -> str:
        remote = self.remotes[number]
        remote.send(list(share.inputs))
        told = {
            "base": remote.machine.base, "folder": self._folder(remote), "run_id": self.where.run_id, "after": after,
            "inputs": {one.there: one.sha256 for one in share.inputs},
            "files": {**share.files, "dtrain/launch.json": share.spec.as_text()},
        }  # fmt: skip
        return str(remote.ask("place", told, RESULTS_SECONDS)["state"])

    def _with_checkpoint(self, shares: Sequence[Share]) -> list[Share]:
        """Each machine keeps only its own ranks' part of a checkpoint: before they go on, all of it lies on each."""
        listed = self._bring("last", lambda _: None)[0]
        step = last_checkpoint(self.paths)
        if step is None:
            return list(shares)
        folder = f"dtrain/checkpoints/step-{step}/"
        everything = shipped([Input(self.paths.checkpoint(step), folder.rstrip("/"))])
        return [
            replace(share, inputs=[*share.inputs, *(one for one in everything if one.there not in has)])
            for share, has in zip(shares, listed, strict=True)
        ]

    def _meet(self, shares: Sequence[Share]) -> str:
        """The first machine picks an address and a port, and each is told its own end of the way there."""
        addresses = [machine.meets_at or machine.host.address for machine in self.where.machines]
        told = {"folder": self._folder(self.remotes[0]), "machines": addresses}
        meeting = str(self.remotes[0].ask("meeting", told)["meeting"])
        self._on_each(lambda number: self._tell_place(number, shares[number], meeting))
        return meeting

    def _tell_place(self, number: int, share: Share, meeting: str) -> None:
        remote = self.remotes[number]
        link = remote.ask("link", {"meeting": meeting})
        names = {"GLOO_SOCKET_IFNAME": link["interface"], "NCCL_SOCKET_IFNAME": f"={link['interface']}"}
        spec = replace(
            share.spec, ranks=at_place(share.spec.ranks, meeting, number == 0, link["address"]),
            env={**names, **share.spec.env},
        )  # fmt: skip
        self._place(number, replace(share, spec=spec, inputs=()), None)

    def _start_all(self, secrets: Mapping[str, str]) -> None:
        """The first refusal stops those that were started: a part of a run is no run."""
        try:
            self._on_each(lambda number: self._start(number, secrets))
        except LauncherRefused:
            self._on_each(lambda number: self._stop(number, at_once=True))
            raise

    def _start(self, number: int, secrets: Mapping[str, str]) -> None:
        remote = self.remotes[number]
        remote.ask("start", {"folder": self._folder(remote), "secrets": dict(secrets)}, 90.0)

    # --- asking ---

    def status(self) -> Status:
        """How it stands, and its news brought home. A machine that does not answer leaves the last known status."""
        ending = Ending.read(self.paths)
        if ending is not None:
            return Status(ending.state, ending.code, ending.reason)
        try:
            answers = self._on_each(self._look)
        except Unreachable as error:
            return self.mirror.unreachable(error)
        self.mirror.conclude()
        ending = Ending.read(self.paths)
        if ending is not None:
            return Status(ending.state, ending.code, ending.reason)
        status = _together(answers, self.where.names)
        self.mirror.seen(status)
        return status

    def _look(self, number: int) -> Mapping[str, Any]:
        remote = self.remotes[number]
        folder = self._folder(remote)
        return self.mirror.follow(number, lambda have: remote.ask("look", {"folder": folder, "have": have}, 20.0))

    def logs(self, follow: bool, is_over: Callable[[], bool]) -> Iterator[str]:
        self.status()
        return runlogs.merged(self.paths, follow, is_over)

    # --- ending ---

    def stop(self, at_once: bool) -> None:
        """Returns when no process of it is left on any machine. Unreachable when a machine cannot be asked.

        Only the machine of rank 0 is told to let it save: its ranks tell the others, wherever these are.
        """
        if Ending.read(self.paths) is not None:
            return
        if at_once:
            self._on_each(lambda number: self._stop(number, at_once=True))
        else:
            self._stop(0, at_once=False)
            on_each(range(1, len(self.remotes)), lambda number: self._stop(number, False, PARTING_SECONDS))
        self.status()

    def _stop(self, number: int, at_once: bool, wait_seconds: float = 0.0) -> None:
        remote = self.remotes[number]
        told = {
            "folder": self._folder(remote), "run_id": self.where.run_id, "at_once": at_once,
            "wait_seconds": wait_seconds,
        }  # fmt: skip
        remote.ask("stop", told, self.where.grace_seconds + STOP_SECONDS)

    # --- bringing home ---

    def fetch(self, checkpoints: str | None, say: Say) -> Fetched:
        """The model and what else the run made, into the local folder, by checksum."""
        self.status()
        return self._bring(checkpoints, say)[1]

    def _bring(self, checkpoints: str | None, say: Say) -> tuple[list[Mapping[str, Any]], Fetched]:
        """Also what each machine has."""
        listed, brought = [], Fetched(0, 0)
        for number, remote in enumerate(self.remotes):
            files = results_of(remote, self._folder(remote), checkpoints)
            if number > 0:  # what only the first rank writes is of the first machine
                files = {name: about for name, about in files.items() if is_share(name)}
            brought += bring_home(Results(remote, self._folder(remote)), files, self.paths.output, say)
            listed.append(files)
        return listed, brought

    # --- on the machines ---

    def _pass_gate(self, needs: Needs) -> None:
        """LauncherRefused with every machine that is not fit, and why."""
        found = self._on_each(lambda number: self._unfit(self.remotes[number], needs))
        unfit = [f"{name}: {'; '.join(lines)}" for name, lines in zip(self.where.names, found, strict=True) if lines]
        if unfit:
            raise Unfit(f"not fit to train: {' | '.join(unfit)}", [place for place, said in enumerate(found) if said])

    def _unfit(self, remote: Remote, needs: Needs) -> list[str]:
        wanted = gate.Wanted.of(needs.plan, needs.device, needs.ranks, self._folder(remote))
        found = remote.module("dtrain.launch.gate", asdict(wanted), GATE_SECONDS)
        return gate.refusals(found["findings"])

    def _reach_each_other(self, meeting: str) -> None:
        names = self.where.names

        def tried(number: int) -> str | None:
            told = {"folder": self._folder(self.remotes[number]), "meeting": meeting, "names": names, "node": number}
            verdict: str | None = self.remotes[number].ask("reach", told, GATE_SECONDS)["verdict"]
            return verdict

        verdict = self._on_each(tried)[0]
        if verdict is not None:
            raise LauncherRefused(f"not fit to train together: {verdict}", fix="nothing was started")

    def _folder(self, remote: Remote) -> str:
        return remote.machine.run_folder(self.where.run_id)

    def _on_each(self, work: Callable[[int], T]) -> list[T]:
        """On all machines at once; the first error is raised when all are done."""
        return on_each(range(len(self.remotes)), work)


def _refuse_half_ended(states: Sequence[str], names: Sequence[str]) -> None:
    """A machine where the run has ended would leave the others waiting for it."""
    over = [f"{name}: {state}" for name, state in zip(names, states, strict=True) if state not in (PLACED, "running")]
    if over and len(over) < len(names):
        raise LauncherRefused(
            f"the run has ended on a part of its machines: {', '.join(over)}", fix="dtrain resume RUN"
        )


def on_each(things: Sequence[Any], work: Callable[[Any], T]) -> list[T]:
    """In parallel; every one is tried, then the first error is raised."""
    if len(things) < 2:
        return [work(thing) for thing in things]
    with ThreadPoolExecutor(len(things)) as pool:
        futures = [pool.submit(work, thing) for thing in things]
    return [future.result() for future in futures]


def _together(answers: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Status:
    """One status of all machines: it runs while one of them runs."""
    told = [answer["status"] for answer in answers]
    running = [status for status in told if status is not None and status["state"] == "running"]
    over = [
        (name, status) for name, status in zip(names, told, strict=True) if status is not None and status not in running
    ]
    if running:
        broken = [f"{name}: {status['reason']}" for name, status in over if status["state"] != "done"]
        return Status("running", None, "; ".join([running[0]["reason"], *broken]))
    lost = [f"{name}: {status['reason']}" for name, status in over if status["state"] == "lost"]
    never = [name for name, status in zip(names, told, strict=True) if status is None]
    words = lost + [f"nothing was started on {name}" for name in never]
    return Status("lost", None, "; ".join(words))
