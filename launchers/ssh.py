"""Any machines one can log in to: no scheduler, one supervisor on each, torchrun's rendezvous between them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from dtrain.errors import BadInput, DtrainError, LauncherRefused, Unreachable
from dtrain.launch import bundle, far, machine, secrets, tunnel
from dtrain.launch.api import Handle, Job, Rendered, Status
from dtrain.launch.here import SAME_CARD
from dtrain.launch.machine import Machine, Remote, Seen
from dtrain.launch.spec import LaunchSpec, spec_for, with_python
from dtrain.launch.where import Where, told_there
from dtrain.paths import RunPaths

from .ssh_options import WHERE, SshOptions, read_options

NAME = "ssh"


class SshLauncher:
    name = NAME
    asks_for_files = True
    look_seconds = 1.0
    """How often a machine is really asked: a screen asks ten times a second."""

    def __init__(self) -> None:
        tunnel.require_fabric()
        self.lines = tunnel.Lines()
        self._looked: dict[str, tuple[float, Status]] = {}
        self._seen: dict[Machine, Seen] = {}
        """What `check` found, for the submit that follows it."""

    def check(self, job: Job | None = None) -> list[str]:
        """With a job every host is logged in to and looked at."""
        if job is None:
            return []
        options = read_options(job.options)
        _refuse_another_number(job, options)
        remotes = self._remotes(options)
        found = far.on_each(remotes, _seen_or_problem)
        self._seen = {one.machine: said for one, said in zip(remotes, found, strict=True) if isinstance(said, Seen)}
        problems = [said for said in found if isinstance(said, str)]
        seen = {remote.name: said for remote, said in zip(remotes, found, strict=True) if isinstance(said, Seen)}
        problems += [
            line for remote in remotes if remote.name in seen for line in machine.problems(remote, seen[remote.name])
        ]
        if not problems:
            expected = bundle.expected_there(job.config)
            problems = [
                line for lines in far.on_each(remotes, lambda one: machine.lacking(one, expected)) for line in lines
            ]
        if not problems and job.device == "cuda":
            _refuse_other_gpus(job, seen)
            if options.gate:
                _refuse_other_drivers(seen)
        return problems

    def render(self, job: Job) -> Rendered:
        options = read_options(job.options)
        _refuse_another_number(job, options)
        files, commands = {}, []
        for one in options.machines:
            folder = one.run_folder(job.run_id)
            for name, text in _documents(job, options, one).items():
                files[f"{one.host}:{folder}/{name}"] = text
            commands += [_typed(one, "place"), _typed(one, "start")]
        return Rendered(files, tuple(commands), notes=_notes(job, options))

    def submit(self, job: Job, rendered: Rendered) -> Handle:
        options = read_options(job.options)
        _refuse_another_number(job, options)
        where = Where(job.run_id, self._ready(options, job), options.trust, options.grace_seconds)
        run = far.Far(where, RunPaths(job.folder), self.lines)
        shares = [
            _share(job, options, said, there) for said, there in zip(options.machines, where.machines, strict=True)
        ]

        needs = far.Needs(job.plan, job.device, job.ranks_per_node) if options.gate else None
        run.start(shares, secrets.of_environment(options.secrets, os.environ), needs)
        self._looked.pop(job.run_id, None)
        return Handle(self.name, job.run_id, str(job.folder), where.as_json())

    def status(self, handle: Handle) -> Status:
        looked, last = self._looked.get(handle.run_id, (0.0, None))
        if last is not None and last.state in ("running", "pending") and time.monotonic() - looked < self.look_seconds:
            return last
        run = self._run(handle)
        status = run.status() if run is not None else Status("lost", None, "nothing was started on any host")
        self._looked[handle.run_id] = (time.monotonic(), status)
        return status

    def logs(self, handle: Handle, follow: bool) -> Iterator[str]:
        run = self._run(handle)
        if run is None:
            return iter(())
        return run.logs(follow, lambda: self.status(handle).state not in ("running", "pending"))

    def cancel(self, handle: Handle) -> None:
        self._stop(handle, at_once=False)

    def kill(self, handle: Handle) -> None:
        self._stop(handle, at_once=True)

    def fetch(self, handle: Handle, checkpoints: str | None, say: Callable[[str], None]) -> tuple[int, int]:
        run = self._run(handle)
        if run is None:
            raise BadInput("nothing was started on any host: there is nothing to fetch", key="RUN", value=handle.run_id)
        brought = run.fetch(checkpoints, say)
        return brought.files, brought.brought_bytes

    # --- the machines -------------------------------------------------------------------------------------------------

    def _stop(self, handle: Handle, at_once: bool) -> None:
        run = self._run(handle)
        if run is not None:
            run.stop(at_once)
        self._looked.pop(handle.run_id, None)

    def _run(self, handle: Handle) -> far.Far | None:
        paths = RunPaths(Path(handle.folder))
        where = Where.of(handle.data, paths)
        return None if where is None else far.Far(where, paths, self.lines)

    def _remotes(self, options: SshOptions) -> list[Remote]:
        return [Remote(one, self.lines.to(one.host, options.trust)) for one in options.machines]

    def _ready(self, options: SshOptions, job: Job) -> tuple[Machine, ...]:
        """The machines with their paths as they are there, each with an environment. LauncherRefused: none was touched
        beyond its environment."""
        try:
            return tuple(far.on_each(self._remotes(options), lambda remote: self._made_ready(remote, _extras(job))))
        except Unreachable as error:
            raise LauncherRefused(error.message, key=f"{WHERE}.hosts", fix="nothing was started") from None

    def _made_ready(self, remote: Remote, extras: tuple[str, ...]) -> Machine:
        seen = self._seen.pop(remote.machine, None) or remote.probe()
        problems = machine.problems(remote, seen)
        if problems:
            raise LauncherRefused("; ".join(problems), key=f"{WHERE}.hosts")
        remote = Remote(machine.settled(remote.machine, seen), remote.tunnel)
        remote.make_environment(extras)
        return remote.machine


def _seen_or_problem(remote: Remote) -> Seen | str:
    try:
        return remote.probe()
    except (LauncherRefused, Unreachable) as error:
        return str(DtrainError(error.message, fix=error.fix))


def _extras(job: Job) -> tuple[str, ...]:
    return ("train", "wandb") if job.config.get("wandb_project") else ("train",)


def _refuse_another_number(job: Job, options: SshOptions) -> None:
    has, wants = len(options.machines), job.nodes
    named = f"{has} hosts are named" if has > 1 else "1 host is named"
    if not has:
        raise BadInput(
            "no hosts are named", key=f"{WHERE}.hosts", allowed="[user@host:port, …] or the path of a hosts file",
            fix="--set launchers.ssh.hosts=[user@host]",
        )  # fmt: skip
    if has != wants:
        raise BadInput(
            f"the profile has {wants} node{'s' if wants > 1 else ''} and {named}",
            key=f"{WHERE}.hosts", value=[str(one.host) for one in options.machines],
            fix="take a profile such as a100x8x2 (two nodes), or name as many hosts as it has nodes",
        )  # fmt: skip


def _refuse_other_gpus(job: Job, seen: Mapping[str, Seen]) -> None:
    """Machines that are not what the profile says, or not alike, are the person's mistake: BadInput."""
    planned = job.plan.get("profile", {}).get("capacity_gib")
    for name, said in seen.items():
        if len(said.gpus) < job.ranks_per_node:
            raise BadInput(
                f"the profile has {job.ranks_per_node} GPUs a node and {name} shows {len(said.gpus)}", key="--profile",
                fix="log in and type nvidia-smi: no driver, or other GPUs than you thought",
            )  # fmt: skip
        smallest = min(said.gpu_memory_gib[: job.ranks_per_node])
        if planned and smallest < SAME_CARD * planned:
            card = said.gpus[0]["name"]
            raise BadInput(
                f"the profile's cards have {planned:.0f} GiB, and a {card} of {name} has {smallest:.0f}",
                key="--profile", fix="take the profile of the cards that are there: dtrain profiles",
            )  # fmt: skip
    kinds = {name: sorted({gpu["name"] for gpu in said.gpus[: job.ranks_per_node]}) for name, said in seen.items()}
    if len({tuple(names) for names in kinds.values()}) > 1:
        told = "; ".join(f"{name}: {', '.join(names)}" for name, names in kinds.items())
        raise BadInput(
            "the hosts have different GPUs, and the slowest would set the pace", key=f"{WHERE}.hosts", value=told,
            fix="take hosts that are alike",
        )  # fmt: skip


def _refuse_other_drivers(seen: Mapping[str, Seen]) -> None:
    """Drivers of different branches (their first number) run different CUDA and NCCL paths on one job's hosts."""
    told = {name: said.gpus[0]["driver"] for name, said in seen.items()}
    if len({driver.partition(".")[0] for driver in told.values()}) > 1:
        raise BadInput(
            "the hosts have drivers of different branches", key=f"{WHERE}.hosts",
            value="; ".join(f"{name}: {driver}" for name, driver in told.items()),
            fix="update the older one; or, without trying them out: --set launchers.ssh.gate=false",
        )  # fmt: skip


# --- what is sent -------------------------------------------------------------------------------------------------


def _share(job: Job, options: SshOptions, said: Machine, there: Machine) -> far.Share:
    """What was rendered for a machine, with its paths as they are there, and the files that go with it."""
    _, inputs = bundle.moved(job.config, "")
    if options.project:
        inputs += bundle.tracked_files(Path(job.working_directory or os.getcwd()))
    documents = _documents(job, options, there)
    spec = documents.pop("dtrain/launch.json")
    return far.Share(documents, LaunchSpec.of_text(spec), bundle.shipped(inputs))


def _documents(job: Job, options: SshOptions, one: Machine) -> dict[str, str]:
    """Name in the run's folder → content, as a machine gets them."""
    folder = one.run_folder(job.run_id)
    config, _ = bundle.moved(job.config, folder)
    about = {
        "schema_version": 1, "id": job.run_id, "name": job.name, "launcher": NAME, "folder": folder, "nodes": job.nodes,
        "ranks_per_node": job.ranks_per_node, "device": job.device,
        **told_there(options.machines, options.grace_seconds, job.options, "hosts"),
    }  # fmt: skip
    told = {"config.yaml": config, "plan.json": dict(job.plan), "run.json": about}
    texts = {
        f"dtrain/{name}": json.dumps(document, indent=2, ensure_ascii=False) + "\n" for name, document in told.items()
    }
    return {**texts, "dtrain/launch.json": _spec(job, options, one).as_text()}


def _spec(job: Job, options: SshOptions, one: Machine) -> LaunchSpec:
    folder = one.run_folder(job.run_id)
    works_in = f"{folder}/{bundle.PROJECT}" if options.project else folder
    there = replace(job, folder=Path(folder), working_directory=works_in)
    env = {"DTRAIN_HOME": f"{one.base}/home", **(options.env or {})}
    spec = spec_for(there, grace_seconds=options.grace_seconds, env=env)
    return replace(with_python(spec, one.agent_python), nodes=1)  # its supervisor watches over this machine alone


def _typed(one: Machine, verb: str) -> tuple[str, ...]:
    """As a person would type it; the content goes over stdin."""
    port = ("-p", str(one.host.port)) if one.host.port else ()
    to = f"{one.host.user}@{one.host.address}" if one.host.user else one.host.address
    return ("ssh", *port, to, one.agent_python, "-P", "-m", "dtrain.launch.agent", verb)


def _notes(job: Job, options: SshOptions) -> tuple[str, ...]:
    _, inputs = bundle.moved(job.config, "")
    lines = [f"sent by checksum, where it is not there yet: {one.local} as {one.there}" for one in inputs]
    if any(one.venv is None for one in options.machines):
        lines.append(f"dtrain[{','.join(_extras(job))}] is installed into an environment on each host, pinned; once")
    if options.project:
        lines.append("the git-tracked files of this folder go along, .env* files never")
    sent = secrets.of_environment(options.secrets, os.environ)
    if sent:
        lines.append(f"over stdin, into memory there: {', '.join(sent)}")
    if job.nodes > 1:
        lines.append("FIRST_NODE, THIS_NODE and IS_FIRST are filled in on the hosts, from the routes between them")
    return tuple(lines)
