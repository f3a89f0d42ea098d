"""The run on its rented machines: one can log in, an environment is there, it is started, followed and fetched."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dtrain.cloud.held import HeldPaths
from dtrain.cloud.keys import RunKeys
from dtrain.cloud.options import BASE, CloudOptions
from dtrain.cloud.order_book import OrderBook
from dtrain.cloud.provider import Instance
from dtrain.cloud.push import PUSHED
from dtrain.cloud.warden import NOTICE, Duty
from dtrain.errors import BadInput, DtrainError, LauncherRefused, RunFailed, Unreachable
from dtrain.files import read_json
from dtrain.launch import machine, secrets
from dtrain.launch.bundle import Input, shipped
from dtrain.launch.far import Far, Needs, Share, on_each
from dtrain.launch.machine import Machine, Remote
from dtrain.launch.spec import LaunchSpec
from dtrain.launch.tunnel import Host, Lines, Trust
from dtrain.launch.where import Where
from dtrain.paths import RunPaths

KNOCK_SECONDS = 1.0
TRUST = Trust(connect_seconds=10.0, wait_seconds=0.0)


class Unbootable(LauncherRefused):
    """A machine that cannot be logged in to, or in which no environment can be made: another is taken."""

    def __init__(self, message: str, nodes: Sequence[int]) -> None:
        super().__init__(message)
        self.nodes = tuple(nodes)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, self.nodes)


class RunThere:
    """A run on machines that exist. Every method may be repeated."""

    def __init__(
        self, book: OrderBook, options: CloudOptions, paths: HeldPaths, keys: RunKeys, instances: Mapping[int, Instance]
    ) -> None:
        self.book = book
        self.options = options
        self.paths = paths
        in_order = sorted(instances, key=lambda node: instances[node].private_address or instances[node].address or "")
        self.instances = {node: instances[node] for node in in_order}
        """In the order of their addresses: torch's c10d rendezvous gives rank 0 to the first of them."""
        machines = tuple(_machine(one, keys, options) for one in self.instances.values())
        self.where = Where(book.run_id, machines, TRUST, options.grace_seconds)
        self.lines = Lines()
        self.far = Far(self.where, paths, self.lines)

    def close(self) -> None:
        self.lines.close()

    def wait_for_ssh(self, is_wanted: Callable[[], bool], say: Callable[[str], None]) -> None:
        """Until one can log in to each, with the host key that was put into it. Unbootable: who does not answer."""
        deadline = time.monotonic() + self.options.boot_seconds
        while is_wanted():
            answers = on_each(self.far.remotes, _knocked)
            silent = [number for number, why in enumerate(answers) if why is not None]
            if not silent:
                return
            say(f"waiting for SSH: {answers[silent[0]]}")
            if time.monotonic() > deadline:
                raise Unbootable(f"nobody can log in: {answers[silent[0]]}", [self.node(number) for number in silent])
            time.sleep(KNOCK_SECONDS)

    def prepare(self) -> None:
        """dtrain's environment on each. Unbootable where that fails."""
        found = on_each(self.far.remotes, lambda remote: _prepared(remote, tuple(self.book.extras)))
        bad = [number for number, why in enumerate(found) if why is not None]
        if bad:
            raise Unbootable(f"no environment: {found[bad[0]]}", [self.node(number) for number in bad])

    def start(self) -> None:
        """Place, gate, start; a run that lives is left alone."""
        needs = Needs(self.book.plan, self.book.device, self.book.ranks_per_node) if self.options.gate else None
        share = self._share()
        sent = secrets.of_environment(self.options.secrets, os.environ)
        self.far.start([share] * len(self.far.remotes), sent, needs)

    def watch_over(self, stop_seconds: float, stop_words: str) -> None:
        """A warden on each machine; may be repeated."""
        sent = secrets.of_environment(self.options.secrets, os.environ)

        def told(number: int) -> None:
            remote = self.far.remotes[number]
            duty = Duty(
                remote.machine.run_folder(self.book.run_id), self.book.run_id, self._instance(number).provider,
                stop_seconds, stop_words, self.options.output, sent, max(1.0, min(5.0, self.options.poll_seconds)),
            )  # fmt: skip
            remote.module("dtrain.cloud.warden", asdict(duty), 60.0)

        on_each(range(len(self.far.remotes)), told)

    def _instance(self, number: int) -> Instance:
        return self.instances[self.node(number)]

    def node(self, number: int) -> int:
        """Of the machine that is so far down the line."""
        return list(self.instances)[number]

    def notice(self) -> Mapping[str, Any] | None:
        """What a warden left: why it stopped the run, and whether the machine is being taken away."""
        return next((told for remote in self.far.remotes if (told := self._left(remote, NOTICE)) is not None), None)

    def pushed(self) -> Mapping[str, Any] | None:
        """What the first machine's warden left once all went to `output`, or did not; None: it is at it."""
        return self._left(self.far.remotes[0], PUSHED)

    def _left(self, remote: Remote, name: str) -> Mapping[str, Any] | None:
        with contextlib.suppress(Unreachable, LauncherRefused):
            answer = remote.tunnel.run(("cat", f"{remote.machine.run_folder(self.book.run_id)}/dtrain/{name}"))
            if answer.code == 0:
                told: dict[str, Any] = json.loads(answer.out)
                return told
        return None

    def _share(self) -> Share:
        """What every machine is given: the files, what the config names here, and the checkpoint to go on from."""
        inputs = [Input(Path(local), there) for local, there in self.book.inputs]
        step = last_whole_checkpoint(self.paths)
        if step is not None:
            inputs.append(Input(self.paths.checkpoint(step), f"dtrain/checkpoints/step-{step}"))
            inputs += [Input(path, f"dtrain/{path.relative_to(self.paths.run)}") for path in self._history()]
        files = {name: text for name, text in self.book.files.items() if name != "dtrain/launch.json"}
        return Share(files, LaunchSpec.of_text(self.book.files["dtrain/launch.json"]), shipped(inputs))

    def _history(self) -> list[Path]:
        """What the run's lives on other machines wrote, which this one continues."""
        kept = [self.paths.metrics, *sorted(self.paths.logs.glob("rank-*.log"))]
        return [path for path in kept if path.exists()]

    def fetch(self, say: Callable[[str], None], checkpoints: str | None = None) -> None:
        """Everything that the run made, verified. Another fetch at the same time goes first."""
        while True:
            try:
                self.far.fetch(checkpoints, say)
                return
            except BadInput as error:
                if "another fetch" not in error.message:
                    raise
                time.sleep(self.options.poll_seconds)


def _machine(instance: Instance, keys: RunKeys, options: CloudOptions) -> Machine:
    host = Host(instance.address or "", instance.user, instance.port, str(keys.login_file), keys.host_public)
    return Machine(host, BASE, options.python, options.venv, instance.private_address)


def _knocked(remote: Remote) -> str | None:
    """None: one can log in. A wrong host key is that of the image, until user data has run."""
    try:
        answer = remote.tunnel.run(("true",), timeout_seconds=20.0)
    except (Unreachable, LauncherRefused) as error:
        return error.message
    return None if answer.code == 0 else f"{remote.name}: `true` ends with {answer.code}"


def _prepared(remote: Remote, extras: tuple[str, ...]) -> str | None:
    try:
        seen = remote.probe()
        problems = machine.problems(remote, seen)
        if not problems:
            remote.make_environment(extras)
    except (LauncherRefused, RunFailed, Unreachable) as error:
        return str(DtrainError(error.message, fix=error.fix))
    return "; ".join(problems) or None


def last_whole_checkpoint(paths: RunPaths) -> int | None:
    """Here, with every file: a look brings a manifest home before a fetch brings the rest."""
    found = [manifest for manifest in paths.checkpoints.glob("step-*/manifest.json") if _is_whole(manifest)]
    return max((int(manifest.parent.name.removeprefix("step-")) for manifest in found), default=None)


def _is_whole(manifest: Path) -> bool:
    files = read_json(manifest).get("files", {})
    return all((manifest.parent / name).is_file() for name in files)
