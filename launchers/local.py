"""This machine: one supervisor, torchrun, one process per GPU or CPU rank."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.errors import BadInput, PartMissing
from dtrain.launch import here
from dtrain.launch.api import Handle, Job, Rendered, Status
from dtrain.launch.spec import DEFAULT_GRACE_SECONDS, spec_for
from dtrain.paths import RunPaths


class LocalLauncher:
    name = "local"

    def check(self, job: Job | None = None) -> list[str]:
        if sys.platform != "linux":
            return ["the local launcher needs Linux: it follows processes through /proc"]
        missing = [part for part in ("torch", "deepspeed", "transformers") if importlib.util.find_spec(part) is None]
        if job is None:
            return [f"{part} is not installed: pip install 'dtrain[train]'" for part in missing]
        if missing:
            raise PartMissing.of(missing[0], "train", "training on this machine")
        if job.nodes > 1:
            return [f"the profile has {job.nodes} nodes and this is one machine: take a profile with one node"]
        if job.device == "cuda":
            here.refuse_other_gpus(job, here.gpus())
        return []

    def render(self, job: Job) -> Rendered:
        options = read_options(job.options)
        paths = RunPaths(job.folder)
        spec = spec_for(job, grace_seconds=options.grace_seconds, port=options.master_port, env=options.env)
        return Rendered(
            files={str(paths.launch): spec.as_text()},
            commands=(here.supervise_command(paths),),
            notes=(f"it starts, side by side: {shlex.join(spec.prepare)}", f"and: {shlex.join(spec.ranks)}"),
        )

    def submit(self, job: Job, rendered: Rendered) -> Handle:
        here.start(RunPaths(job.folder), rendered)
        return Handle(self.name, job.run_id, str(job.folder))

    def status(self, handle: Handle) -> Status:
        return here.status(RunPaths(Path(handle.folder)))

    def logs(self, handle: Handle, follow: bool) -> Iterator[str]:
        return here.logs(RunPaths(Path(handle.folder)), follow)

    def cancel(self, handle: Handle) -> None:
        here.stop(RunPaths(Path(handle.folder)), handle.run_id)

    def kill(self, handle: Handle) -> None:
        here.stop(RunPaths(Path(handle.folder)), handle.run_id, at_once=True)


@dataclass(frozen=True)
class LocalOptions:
    """`launchers: {local: {…}}`."""

    grace_seconds: float = DEFAULT_GRACE_SECONDS
    """How long the ranks may take to save once they are told to stop."""
    master_port: int | None = None
    """torchrun's port on 127.0.0.1. Not given, or not free: a free one is taken."""
    env: Mapping[str, str] | None = None
    """Environment of the run's processes, over the caller's own."""


def read_options(told: Mapping[str, Any]) -> LocalOptions:
    """Closed: an unknown key, or a value that cannot be meant, is an error that says what is allowed."""
    given = {key: value for key, value in told.items() if value is not None}
    for key, value in given.items():
        where = f"launchers.local.{key}"
        if key not in _OPTIONS:
            raise BadInput("the local launcher has no such option", key=where, value=value, allowed=", ".join(_OPTIONS))
        accepts, allowed = _OPTIONS[key]
        if not accepts(value):
            raise BadInput("not a value for this option", key=where, value=value, allowed=allowed)
    if "env" in given:
        given["env"] = {name: str(value) for name, value in given["env"].items()}
    return LocalOptions(**given)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "grace_seconds": (lambda value: _is_number(value) and value >= 0, "seconds, 0 or more"),
    "master_port": (lambda value: type(value) is int and 1024 <= value < 65_536, "a port from 1024 to 65535"),
    "env": (lambda value: isinstance(value, Mapping) and all(map(_is_variable, value.items())), "NAME: value pairs"),
}


def _is_variable(item: tuple[Any, Any]) -> bool:
    name, value = item
    return isinstance(name, str) and name != "" and "=" not in name and "\0" not in f"{name}{value}"
