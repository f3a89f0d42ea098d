"""SLURM from a laptop: the run lies where its cluster sees it, and SLURM's launcher is asked on a login node.

problems ─▶ rendered ─▶ submit: environment, files by checksum, then the login node's own launcher submits
status: its word, and what the run's files gained; the folder here follows (`mirror`)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dtrain.errors import DtrainError, LauncherRefused, Unreachable
from dtrain.launch import bundle, machine, relay, secrets, shared, tunnel
from dtrain.launch.api import Handle, Job, Rendered, Status
from dtrain.launch.far_results import RESULTS_SECONDS, Results, results_of
from dtrain.launch.fetch import bring_home
from dtrain.launch.machine import LOGIN_SHELL, Machine, Remote, Seen
from dtrain.launch.mirror import Mirror, last_ended
from dtrain.launch.where import Where, told_there
from dtrain.paths import RunPaths

from . import slurm_check, slurm_script
from .slurm_options import WHERE, Login, SlurmOptions
from .slurm_queue import ASK_SECONDS, Said

NAME = "slurm"
SUBMIT_SECONDS = 300.0
"""A submit asks the controller a few times, each up to ASK_SECONDS, and Python loads slowly from a shared disk."""
STATUS_SECONDS = 90.0
END_SECONDS = 300.0
"""Beyond the ranks' time to save: for the launcher there to see every process gone."""


_NAMES = ("PATH", "LD_LIBRARY_PATH", "SLURM_CONF")
"""What finds SLURM's commands. Nothing else of a person's environment is put on a command line."""
_SAY_THEM = 'echo; for name in "$0" "$@"; do echo "$name=${!name}"; done'


class Logins:
    """Lines to login nodes, and what one client found out about each."""

    def __init__(self) -> None:
        self.lines = tunnel.Lines()
        self.seen: dict[Machine, Seen] = {}
        """What a check saw, for the submit that follows it."""
        self._commands: dict[tunnel.Tunnel, tuple[str, ...]] = {}

    def remote(self, there: Machine, trust: tunnel.Trust, whole_login: bool = False) -> Remote:
        """With the PATH a person has after logging in; `whole_login`: with all that is set up then, as for a job.

        A profile may take a second or more: it is run once, and for a submit.
        """
        line = self.lines.to(there.host, trust)
        return Remote(there, line, LOGIN_SHELL if whole_login else self._with_path(line))

    def _with_path(self, line: tunnel.Tunnel) -> tuple[str, ...]:
        if line not in self._commands:
            answer = line.run(("bash", "-l", "-c", _SAY_THEM, *_NAMES))
            said = answer.out.decode(errors="replace").splitlines()[-len(_NAMES) :]
            self._commands[line] = ("env", *(word for word in said if not word.endswith("=")))
        return self._commands[line]


@dataclass(frozen=True, eq=False)
class LoginNode:
    """SLURM's commands behind SSH, before dtrain itself is there."""

    remote: Remote

    def has(self, command: str) -> bool:
        return self.run(["sh", "-c", 'command -v "$0"', command]).code == 0

    def run(self, command: Sequence[str], text: str = "") -> Said:
        try:
            answer = self.remote.tunnel.run((*self.remote.shell, *command), text.encode(), ASK_SECONDS)
        except Unreachable as error:
            return Said(124, "", error.message)
        return Said(answer.code, answer.out.decode(errors="replace"), answer.err.decode(errors="replace"))


# --- what is sent -------------------------------------------------------------------------------------------------


def moved(job: Job, options: SlurmOptions, there: Machine) -> tuple[Job, SlurmOptions]:
    """The run as it is on the cluster: its folder, its files, and no more login node."""
    folder = there.run_folder(job.run_id)
    config, _ = bundle.moved(job.config, folder)
    told = {key: value for key, value in job.options.items() if key != "login"}
    on_cluster = replace(job, folder=Path(folder), config=config, options=told, working_directory=folder)
    env = {"DTRAIN_HOME": f"{there.base}/home", **(options.env or {})}
    return on_cluster, replace(options, login=None, env=env)


def rendered(job: Job, options: SlurmOptions, login: Login) -> Rendered:
    """What would be written and run on the login node; with `~` where only that knows its home."""
    host = login.machine.host
    real = _rendered(job, options, login.machine)
    files = {f"{host}:{path}": text for path, text in {**_documents(job, options, login.machine), **real.files}.items()}
    return replace(
        real, files=files, commands=tuple(("ssh", str(host), *command) for command in real.commands),
        notes=(*real.notes, *_notes(job, login)),
    )  # fmt: skip


def _rendered(job: Job, options: SlurmOptions, there: Machine) -> Rendered:
    return slurm_script.rendered(*moved(job, options, there), there.agent_python)


def _documents(job: Job, options: SlurmOptions, there: Machine) -> dict[str, str]:
    """Path → content of what describes the run."""
    on_cluster, _ = moved(job, options, there)
    about = {
        "schema_version": 1, "id": job.run_id, "name": job.name, "launcher": NAME, "folder": str(on_cluster.folder),
        "nodes": job.nodes, "ranks_per_node": job.ranks_per_node, "device": job.device,
        **told_there([there], _grace_seconds(job, options), job.options, "login"),
    }  # fmt: skip
    paths = RunPaths(on_cluster.folder)
    told = {paths.config: on_cluster.config, paths.plan: dict(job.plan), paths.about: about}
    return {str(path): json.dumps(one, indent=2, ensure_ascii=False) + "\n" for path, one in told.items()}


def _notes(job: Job, login: Login) -> tuple[str, ...]:
    _, inputs = bundle.moved(job.config, "")
    lines = [f"sent by checksum, where it is not there yet: {one.local} as {one.there}" for one in inputs]
    if login.machine.venv is None:
        lines.append(f"dtrain[{','.join(_extras(job))}] is installed into an environment on the login node, once")
    if login.machine.base.startswith("~/"):
        lines.append("~ is written out on the login node")
    sent = secrets.of_environment(login.secrets, os.environ)
    if sent:
        lines.append(f"over stdin, into the environment of sbatch: {', '.join(sent)}")
    return tuple(lines)


def _extras(job: Job) -> tuple[str, ...]:
    return ("train", "wandb") if job.config.get("wandb_project") else ("train",)


# --- checking and starting ----------------------------------------------------------------------------------------


def problems(logins: Logins, job: Job, options: SlurmOptions, login: Login) -> list[str]:
    """What would stop a submit, asked on the login node; nothing is written there."""
    tunnel.require_fabric()
    try:
        remote = logins.remote(login.machine, login.trust)
        seen = logins.seen[login.machine] = remote.probe()
    except (LauncherRefused, Unreachable) as error:
        return [str(DtrainError(error.message, fix=error.fix))]
    found = machine.problems(remote, seen) + machine.lacking(remote, bundle.expected_there(job.config))
    cluster = LoginNode(remote)
    if not cluster.has("sbatch"):
        found.append(f"sbatch is not on the PATH of {remote.name} after logging in: is it a login node?")
    if found:
        return found
    there = machine.settled(login.machine, seen)
    on_cluster, inner = moved(job, options, there)
    return slurm_check.problems(cluster, on_cluster, inner, slurm_script.script(on_cluster, inner, there.agent_python))


def submit(logins: Logins, job: Job, options: SlurmOptions, login: Login) -> Handle:
    """LauncherRefused: nothing was submitted. Unreachable: a job may be there, and the folder here knows where."""
    paths = RunPaths(job.folder)
    with shared.one_at_a_time(paths):
        try:
            there = _made_ready(logins, login, _extras(job))
            where = Where(job.run_id, (there,), login.trust, _grace_seconds(job, options))
            where.note(paths)
            run = LoginRun(where, paths, logins)
            run.place(job, options)
        except Unreachable as error:
            raise LauncherRefused(error.message, key=f"{WHERE}.login", fix="nothing was submitted") from None
        data = run.submit(job, options, secrets.of_environment(login.secrets, os.environ))
    return Handle(NAME, job.run_id, str(job.folder), {**where.as_json(), **data})


def _made_ready(logins: Logins, login: Login, extras: tuple[str, ...]) -> Machine:
    tunnel.require_fabric()
    remote = logins.remote(login.machine, login.trust)
    seen = logins.seen.pop(login.machine, None) or remote.probe()
    found = machine.problems(remote, seen)
    if found:
        raise LauncherRefused("; ".join(found), key=f"{WHERE}.login")
    there = machine.settled(login.machine, seen)
    Remote(there, remote.tunnel, remote.shell).make_environment(extras)
    return there


def _grace_seconds(job: Job, options: SlurmOptions) -> float:
    given = options.grace_seconds
    return given if given is not None else slurm_script.signal_margin_seconds(job, options)


# --- a run there --------------------------------------------------------------------------------------------------


def found(handle: Handle, paths: RunPaths, logins: Logins) -> LoginRun | None:
    """The run of a handle, if it is behind a login node; also one whose client died before it got there."""
    where = Where.of(handle.data if "machines" in handle.data else {}, paths)
    meant = (shared.about(paths).get("options") or {}).get("login")
    return LoginRun(where, paths, logins) if where is not None or meant else None


class LoginRun:
    """One run, on the cluster of a login node; `where` is None as long as nothing was sent there."""

    def __init__(self, where: Where | None, paths: RunPaths, logins: Logins) -> None:
        self.where = where
        self.paths = paths
        self.mirror = Mirror(paths, where.names if where else [])
        self._logins = logins

    def place(self, job: Job, options: SlurmOptions) -> None:
        """The files of the run and its inputs, by checksum. An ended life is put aside there as it is here."""
        there = self._where.machines[0]
        _, inputs = bundle.moved(job.config, "")
        shipped = bundle.shipped(inputs)
        self._remote.send(list(shipped))
        folder = there.run_folder(job.run_id)
        documents = _documents(job, options, there)
        told = {
            "base": there.base, "folder": folder, "run_id": job.run_id, "after": last_ended(self.paths),
            "inputs": {one.there: one.sha256 for one in shipped},
            "files": {path.removeprefix(f"{folder}/"): text for path, text in documents.items()},
        }  # fmt: skip
        self._remote.ask("place", told, RESULTS_SECONDS)

    def submit(self, job: Job, options: SlurmOptions, sent: Mapping[str, str]) -> Mapping[str, Any]:
        """The data of the login node's own handle."""
        there = self._where.machines[0]
        on_cluster, _ = moved(job, options, there)
        told = {
            "launcher": NAME, "job": relay.job_as_json(on_cluster), "secrets": dict(sent),
            "rendered": asdict(_rendered(job, options, there)),
        }  # fmt: skip
        remote = self._logins.remote(there, self._where.trust, whole_login=True)  # sbatch hands its environment on
        data: Mapping[str, Any] = remote.module("dtrain.launch.relay", told, SUBMIT_SECONDS, "submit")["data"]
        return data

    def status(self) -> Status:
        """How it stands, and its news brought home. A login node that does not answer leaves the last known status."""
        ended = shared.ended(self.paths)
        if ended is not None:
            return ended
        if self.where is None:
            return Status("lost", None, "nothing was submitted")
        told = {"handle": self._handle.as_json()}
        try:
            answer = self.mirror.follow(0, lambda have: self._ask("status", {**told, "have": have}, STATUS_SECONDS))
        except Unreachable as error:
            return self.mirror.unreachable(error)
        status = Status(**answer["status"])
        self.mirror.seen(status)
        return shared.ended(self.paths) or status

    def cancel(self) -> None:
        """Let it save; returns when nothing of it runs any more."""
        self._end("cancel")

    def kill(self) -> None:
        self._end("kill")

    def _end(self, how: str) -> None:
        if self.where is None or shared.ended(self.paths) is not None:
            return
        self._ask(how, {"handle": self._handle.as_json()}, self.where.grace_seconds + END_SECONDS)
        self.status()

    def fetch(self, checkpoints: str | None, say: Callable[[str], None]) -> tuple[int, int]:
        """Files in all, and bytes that came over the line."""
        self.status()
        folder = self._handle.folder
        files = results_of(self._remote, folder, checkpoints)
        brought = bring_home(Results(self._remote, folder), files, self.paths.output, say)
        return brought.files, brought.brought_bytes

    @property
    def _where(self) -> Where:
        if self.where is None:
            raise LauncherRefused("nothing was submitted", key="RUN", fix="launch it again")
        return self.where

    @property
    def _remote(self) -> Remote:
        return self._logins.remote(self._where.machines[0], self._where.trust)

    @property
    def _handle(self) -> Handle:
        """As the launcher there knows the run: by its id and its folder."""
        return Handle(NAME, self._where.run_id, self._where.machines[0].run_folder(self._where.run_id))

    def _ask(self, verb: str, told: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        return self._remote.module("dtrain.launch.relay", told, seconds, verb)
