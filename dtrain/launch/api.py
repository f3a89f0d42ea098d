"""What a launcher is: six methods over plain data. A third party's launcher imports this file and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

ENTRY_POINT_GROUP = "dtrain.launchers"

RunState = Literal["pending", "running", "done", "failed", "interrupted", "lost"]
"""`pending`: accepted, not started. `lost`: the launcher no longer knows it and it left no exit.json."""


@dataclass(frozen=True)
class Job:
    """One run to start. The folder is complete (config.yaml, plan.json) before a launcher sees it."""

    run_id: str
    name: str
    folder: Path
    """The run's output folder; on a remote launcher, the local copy to ship."""
    nodes: int
    ranks_per_node: int
    device: Literal["cuda", "cpu"]
    plan: Mapping[str, Any] = field(default_factory=dict)
    """plan.json, for what a launcher prints or asks for (hours, memory); never to decide about training."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """config.yaml as plain data, for what a launcher ships: the local files it names."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """`launchers.NAME` of the config."""
    working_directory: str = ""
    """Where it was launched first: relative paths of the config mean this folder, also after a resume elsewhere."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment the run needs beside the caller's own; never secrets."""


@dataclass(frozen=True)
class Rendered:
    """Everything `submit` will do, as text: what `--dry-run` prints is what is sent."""

    files: Mapping[str, str] = field(default_factory=dict)
    """Path (as it will be written) → content."""
    commands: tuple[tuple[str, ...], ...] = ()
    usd_per_hour: float = 0.0
    notes: tuple[str, ...] = ()
    requests: tuple[Mapping[str, Any], ...] = ()
    """To a provider's API, as they are sent, secrets by name only."""


@dataclass(frozen=True)
class Handle:
    """How to find a submitted run again: plain JSON."""

    launcher: str
    run_id: str
    folder: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Status:
    state: RunState
    exit_code: int | None = None
    reason: str = ""
    """One line for people."""


@runtime_checkable
class Launcher(Protocol):
    """Six methods. Anything refused is `errors.LauncherRefused`, in the launcher's words plus what to do."""

    name: str

    def check(self, job: Job | None = None) -> list[str]:
        """What would stop a submit, a line each; empty means ready. Spends nothing.

        With a job it may raise instead, where another code than 5 tells more: `BadInput` (a machine cannot be what the
        profile says), `PartMissing` (an extra is not installed). Without one it only lists.
        """

    def render(self, job: Job) -> Rendered:
        """Pure: the files, commands and price of a submit."""

    def submit(self, job: Job, rendered: Rendered) -> Handle:
        """The only method that spends. Idempotent per run id: a second submit finds the first one's run."""

    def status(self, handle: Handle) -> Status: ...

    def logs(self, handle: Handle, follow: bool) -> Iterator[str]:
        """Lines of the run's logs, ranks named; with `follow`, until the run has ended."""

    def cancel(self, handle: Handle) -> None:
        """Stop it, letting it save first. Idempotent; returns when nothing is running or billed any more."""


@runtime_checkable
class CanKill(Protocol):
    """An ability: end a run without letting it save. What a second Ctrl-C asks for."""

    def kill(self, handle: Handle) -> None: ...


@runtime_checkable
class HandsOver(Protocol):
    """An ability: a submit prepares everything, and a person starts it elsewhere. `dtrain launch` then says how and
    returns."""

    def next_steps(self, handle: Handle) -> tuple[str, ...]: ...


@runtime_checkable
class AsksForFiles(Protocol):
    """An ability: `check` asks the machines for whole paths of a config that are not here. Of any other launcher's run
    every file must be here."""

    asks_for_files: bool


@runtime_checkable
class CanFetch(Protocol):
    """An ability: bring what a run made elsewhere into its local folder. What `dtrain fetch` asks for."""

    def fetch(self, handle: Handle, checkpoints: str | None, say: Callable[[str], None]) -> tuple[int, int]:
        """Files in all, and bytes that came over the line this time. `checkpoints`: none, last, all; None: last,
        unless the run is done. May be repeated: it goes on where it was cut."""
