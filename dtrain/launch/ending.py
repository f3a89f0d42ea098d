"""How a run ended, and what a next life may go on from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dtrain.errors import RunFailed
from dtrain.files import read_json, write_json
from dtrain.launch.api import RunState
from dtrain.paths import RunPaths
from dtrain.track import jsonl

DONE, FAILED, INTERRUPTED = 0, 1, 75


@dataclass(frozen=True)
class Ending:
    """exit.json."""

    code: int
    reason: str
    """One line for people."""
    step: int
    """Optimizer steps done."""
    ended: float
    """Seconds since 1970."""
    rank: int | None = None
    """The rank that failed first."""

    @classmethod
    def now(cls, paths: RunPaths, code: int, reason: str, rank: int | None = None) -> Ending:
        return cls(code, reason, step_reached(paths), round(time.time(), 3), rank)

    def write(self, paths: RunPaths) -> None:
        self.write_to(paths.exit)

    def write_to(self, file: Path) -> None:
        write_json(file, {"schema_version": 1, **asdict(self)})

    @classmethod
    def read(cls, paths: RunPaths) -> Ending | None:
        return cls.read_from(paths.exit)

    @classmethod
    def read_from(cls, file: Path) -> Ending | None:
        told = read_or_none(file)
        if told is None:
            return None
        ending = cls(*(told.get(name) for name in ("code", "reason", "step", "ended", "rank")))  # type: ignore[arg-type]
        kinds = (type(ending.code), type(ending.reason), type(ending.step), type(ending.rank))
        if kinds[:3] != (int, str, int) or kinds[3] not in (int, type(None)) or type(ending.ended) not in (int, float):
            raise damaged(file, "it does not say how the run ended")
        return ending

    @property
    def state(self) -> RunState:
        if self.code == DONE:
            return "done"
        return "interrupted" if self.code == INTERRUPTED else "failed"


def interrupted(paths: RunPaths, how: str) -> Ending:
    """The ending of a run that can go on, with what it goes on from."""
    saved = last_checkpoint(paths)
    kept = f"the checkpoint of step {saved} is kept" if saved is not None else "no checkpoint was saved yet"
    return Ending.now(paths, INTERRUPTED, f"{how} at step {step_reached(paths)}; {kept}")


def read_or_none(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file. Files are whole or absent: RunFailed for a broken one."""
    try:
        document = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from None
    if not isinstance(document, dict):
        raise damaged(path, "it holds no JSON object")
    return document


def damaged(path: Path, why: str) -> RunFailed:
    return RunFailed(
        f"this file of the run was damaged: {why}", file=str(path), fix="remove it: what the run still needs is told"
    )


def step_reached(paths: RunPaths) -> int:
    """Optimizer steps done, as far as rank 0 told: state.json is up to half a second old, not every step is logged."""
    try:
        state = read_or_none(paths.state) or {}
    except RunFailed:  # damaged: the end of a run is told all the same
        state = {}
    logged = [_steps(line.get("step")) for line in jsonl.read(paths.metrics)[-1:]]
    return max(_steps(state.get("step")), last_checkpoint(paths) or 0, *logged)


def _steps(value: Any) -> int:
    """A number of steps; 0 for what is none."""
    return value if type(value) is int else 0


def put_aside(paths: RunPaths) -> Path | None:
    """Move what the run's last life left (exit.json, state.json, error files) to past/N: a new one can begin."""
    left = [paths.exit, paths.state, paths.supervisor, paths.report, *paths.logs.glob("*.error.json")]
    return _moved_to_past(paths, [path for path in left if path.exists()])


def put_aside_life(paths: RunPaths, ending: Ending) -> Path | None:
    """The same between two lives under one supervisor; how the first one ended is kept beside what it left."""
    left = [path for path in (paths.state, *paths.logs.glob("*.error.json")) if path.exists()]
    folder = _moved_to_past(paths, left)
    if folder is not None:
        ending.write_to(folder / paths.exit.name)
    return folder


def _moved_to_past(paths: RunPaths, left: Sequence[Path]) -> Path | None:
    if not left:
        return None
    number = 1 + sum(1 for _ in paths.past.glob("*"))
    folder = paths.past / str(number)
    folder.mkdir(parents=True)
    for path in left:
        path.replace(folder / path.name)
    return folder


def put_back(paths: RunPaths, aside: Path | None) -> None:
    """Undo `put_aside`: the new life did not begin."""
    for path in aside.iterdir() if aside is not None else ():
        path.replace((paths.logs if path.name.endswith(".error.json") else paths.run) / path.name)
    if aside is not None:
        aside.rmdir()


def last_checkpoint(paths: RunPaths) -> int | None:
    """The step of the newest whole checkpoint."""
    manifests = paths.checkpoints.glob("step-*/manifest.json")
    steps = [path.parent.name.removeprefix("step-") for path in manifests]
    return max((int(step) for step in steps if step.isdecimal()), default=None)
