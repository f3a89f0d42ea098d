"""A launcher that works on another machine than its client: `python -m dtrain.launch.relay VERB`, JSON in, a line out.

    submit   start the run that `place` put there; a second one finds the first one's run
    status   how it stands, and what its files gained since the last look
    cancel   end it, letting it save
    kill     end it at once

SLURM's launcher is asked so on a login node: its folder, its lock and its commands are all there, so a line that is
cut in the middle of a submit changes nothing about how that ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dtrain.errors import LauncherRefused
from dtrain.launch import agent
from dtrain.launch.api import CanKill, Handle, Job, Rendered, Status
from dtrain.launch.load import load


def job_as_json(job: Job) -> dict[str, Any]:
    return {**asdict(job), "folder": str(job.folder)}


def submit(told: Mapping[str, Any]) -> dict[str, Any]:
    """`{"launcher", "job", "rendered", "secrets"}` → the handle."""
    job = Job(**{**told["job"], "folder": Path(told["job"]["folder"])})
    rendered = told["rendered"]
    os.environ.update(told["secrets"])
    commands = tuple(tuple(command) for command in rendered["commands"])
    return load(told["launcher"]).submit(job, replace(Rendered(**rendered), commands=commands)).as_json()


def status(told: Mapping[str, Any]) -> dict[str, Any]:
    """`{"handle", "have"}` → the status and the news. The status is asked first: an ended run's files are complete."""
    handle = Handle(**told["handle"])
    found: Status = load(handle.launcher).status(handle)
    return {**agent.look({"folder": handle.folder, "have": told["have"]}), "status": asdict(found)}


def cancel(told: Mapping[str, Any]) -> dict[str, Any]:
    """`{"handle"}`: returns when nothing of it runs any more."""
    handle = Handle(**told["handle"])
    load(handle.launcher).cancel(handle)
    return {}


def kill(told: Mapping[str, Any]) -> dict[str, Any]:
    """The same without letting it save."""
    handle = Handle(**told["handle"])
    launcher = load(handle.launcher)
    if not isinstance(launcher, CanKill):
        raise LauncherRefused(f"{handle.launcher} cannot end a run without letting it save", fix="dtrain stop RUN")
    launcher.kill(handle)
    return {}


VERBS: dict[str, agent.Verb] = {"submit": submit, "status": status, "cancel": cancel, "kill": kill}

if __name__ == "__main__":
    sys.exit(agent.answer_to(VERBS, sys.argv[1]))
