"""What a client can see of a run, read from its folder: state.json, metrics.jsonl, the words in its logs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from dtrain.launch.ending import read_or_none
from dtrain.launch.runlogs import LogFile
from dtrain.launch.standing import stage
from dtrain.paths import RunPaths

SPOKEN = "[dtrain] "
"""A line of launch.log or rank 0's log that begins so is meant for the person at the screen."""
RECENT_STEPS = 20
"""Steps from which the speed and the time left are told."""


@dataclass(frozen=True)
class Snapshot:
    """The run at one moment."""

    stage: str
    step: int
    steps: int | None
    lines: tuple[Mapping[str, Any], ...]
    """All of metrics.jsonl so far."""
    words: tuple[str, ...]
    """What the run said to people since the last look."""

    def curve(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of every line that has it."""
        return [(line["step"], line[key]) for line in self.lines if line.get(key) is not None and "step" in line]

    def newest(self, key: str) -> float | None:
        return next((line[key] for line in reversed(self.lines) if line.get(key) is not None), None)

    @property
    def step_seconds(self) -> float | None:
        """Median of the recent steps."""
        recent = [line["step_seconds"] for line in self.lines[-RECENT_STEPS:] if line.get("step_seconds")]
        return median(recent) if recent else None

    @property
    def seconds_left(self) -> float | None:
        if self.steps is None or self.step_seconds is None:
            return None
        return (self.steps - self.step) * self.step_seconds


class Observer:
    """Reads only what was added since the last look."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        self._metrics = Tail(paths.metrics)
        self._lines: list[Mapping[str, Any]] = []
        self._logs = [LogFile("launch", paths.launch_log), LogFile("rank 0", paths.rank_log(0))]

    def skip_old_words(self) -> None:
        """A resumed run's logs begin with its last life's."""
        for log in self._logs:
            log.new_lines(everything=True)

    def look(self) -> Snapshot:
        fresh = self._metrics.new_objects()
        if self._metrics.restarted:
            self._lines = []
        self._lines += fresh
        state = read_or_none(self.paths.state) or {}
        logged = max((line["step"] for line in self._lines if "step" in line), default=0)
        return Snapshot(
            stage=stage(self.paths),
            step=max(int(state.get("step") or 0), logged),
            steps=state.get("steps"),
            lines=tuple(self._lines),
            words=tuple(self._spoken()),
        )

    def _spoken(self) -> list[str]:
        lines = [line.partition("] ")[2] for log in self._logs for line in log.new_lines()]
        return [line.removeprefix(SPOKEN) for line in lines if line.startswith(SPOKEN)]


class Tail:
    """Whole lines of a growing file of JSON objects. A resumed run writes it anew, shorter: then from the start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restarted = False
        self._inode = 0
        self._offset = 0

    def new_objects(self) -> list[Mapping[str, Any]]:
        try:
            with self.path.open("rb") as stream:
                found = self.path.stat()
                self.restarted = found.st_ino != self._inode or found.st_size < self._offset
                if self.restarted:
                    self._inode, self._offset = found.st_ino, 0
                stream.seek(self._offset)
                chunk = stream.read()
        except FileNotFoundError:
            return []
        whole = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [line for line in map(_parsed, whole.splitlines()) if line is not None]


def _parsed(line: bytes) -> Mapping[str, Any] | None:
    """A line that a crash cut in half is no object; the step is written again after a resume."""
    try:
        document = json.loads(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
