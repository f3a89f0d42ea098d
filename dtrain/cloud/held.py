"""A rented run's exit.json is held back until its results are home and its machines are gone: then the run is over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dtrain.paths import RunPaths


@dataclass(frozen=True)
class HeldPaths(RunPaths):
    """The run's files as the keeper sees them: how training ended is not yet how the run ended."""

    @property
    def exit(self) -> Path:
        return self.rented / "exit.json"

    @property
    def published(self) -> Path:
        return self.run / "exit.json"
