"""A client's wish that a rented run ends, for its keeper: `rented/stop.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from dtrain.files import write_json
from dtrain.launch.ending import read_or_none
from dtrain.paths import RunPaths

ON_REQUEST = "stopped on request"


@dataclass(frozen=True)
class StopRequest:
    at_once: bool
    """Without letting it save."""
    why: str = ON_REQUEST

    def beside(self, reason: str) -> str:
        """How the run ended, with why it was stopped, where that says more."""
        return reason if self.why == ON_REQUEST or self.why in reason else f"{self.why}; {reason}"

    def write(self, paths: RunPaths) -> None:
        """An at_once stays one."""
        known = StopRequest.read(paths)
        if known is None or (self.at_once and not known.at_once):
            write_json(_file(paths), asdict(self))

    @classmethod
    def read(cls, paths: RunPaths) -> StopRequest | None:
        told = read_or_none(_file(paths))
        return None if told is None else cls(**told)

    @staticmethod
    def forget(paths: RunPaths) -> None:
        _file(paths).unlink(missing_ok=True)


def _file(paths: RunPaths) -> Path:
    return paths.rented / "stop.json"
