"""How a run stands, from its folder alone: exit.json, then its supervisor's life, else lost."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import asdict, dataclass

from dtrain.errors import BadInput
from dtrain.files import write_json
from dtrain.launch.api import RunState, Status
from dtrain.launch.ending import Ending, damaged, last_checkpoint, read_or_none
from dtrain.launch.process import boot_id, is_alive, look
from dtrain.paths import RunPaths


@dataclass(frozen=True)
class Supervisor:
    """supervisor.json: the process that watches a run, named so that no other can be taken for it."""

    run_id: str
    pid: int
    start_ticks: int
    boot_id: str
    host: str
    started: float

    @classmethod
    def here(cls, run_id: str) -> Supervisor:
        own = look(os.getpid())
        assert own is not None
        return cls(run_id, own.pid, own.start_ticks, boot_id(), socket.gethostname(), round(time.time(), 3))

    def write(self, paths: RunPaths) -> None:
        write_json(paths.supervisor, {"schema_version": 1, **asdict(self)})

    @classmethod
    def read(cls, paths: RunPaths) -> Supervisor | None:
        told = read_or_none(paths.supervisor)
        if told is None:
            return None
        try:
            found = cls(*(told[name] for name in cls.__dataclass_fields__))
        except KeyError as error:
            raise damaged(paths.supervisor, f"{error} is missing") from None
        if type(found.pid) is not int or type(found.start_ticks) is not int or found.pid <= 0:
            raise damaged(paths.supervisor, "it names no process")
        return found

    @property
    def is_of_this_machine(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def is_running(self) -> bool:
        """Of a supervisor on this machine; a reboot ends every process."""
        return self.boot_id == boot_id() and is_alive(self.pid, self.start_ticks)


def folder_status(paths: RunPaths) -> Status | None:
    """The run's status, or None when its folder cannot tell (nothing was started, or on another machine)."""
    ending = Ending.read(paths)
    if ending is not None:
        return Status(ending.state, ending.code, ending.reason)
    supervisor = Supervisor.read(paths)
    if supervisor is None or not supervisor.is_of_this_machine:
        return None
    if supervisor.is_running:
        return Status("running", None, stage(paths))
    ending = Ending.read(paths)  # it may have ended between the two looks
    if ending is not None:
        return Status(ending.state, ending.code, ending.reason)
    return Status("lost", None, "its supervisor is gone and left no exit.json (killed, or the machine went down)")


def never_began(paths: RunPaths) -> bool:
    """Bad input ended it before its first step: it holds nothing but the mistake, and a launch may take its place."""
    ending = Ending.read(paths)
    if ending is None or ending.code != BadInput.exit_code or ending.step > 0:
        return False
    return not paths.metrics.exists() and last_checkpoint(paths) is None


def other_run(paths: RunPaths, run_id: str) -> str | None:
    """The id of the run that lies in the folder now, where that is not this one."""
    told = read_or_none(paths.about)
    return str(told.get("id")) if told is not None and told.get("id") != run_id else None


def stage(paths: RunPaths) -> str:
    """What the run is doing, in words; before rank 0 speaks, what it waits for."""
    state = read_or_none(paths.state)
    if not paths.data.exists() and (state is None or state.get("stage") in ("starting", "loading")):
        return "preparing data"
    if state is None:
        return "starting ranks"
    return str(state.get("stage", "running"))


def run_state(paths: RunPaths) -> RunState:
    """The folder's own word on how the run stands; `pending` when nothing was started on this machine."""
    status = folder_status(paths)
    return status.state if status is not None else "pending"
