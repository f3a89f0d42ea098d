"""That a rented run is to end, for its keeper: a client's wish, or its limit's; `rented/stop.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from dtrain.cloud.meter import Meter
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


class Wishes:
    """Whether a run is still wanted, as its keeper asks."""

    def __init__(self, paths: RunPaths, meter: Meter) -> None:
        self.paths = paths
        self.meter = meter

    def request(self) -> StopRequest | None:
        """A limit that is nearly reached is written down as a wish to stop."""
        if self.meter.is_nearly_over() and StopRequest.read(self.paths) is None:
            StopRequest(False, self.meter.words()).write(self.paths)
        return StopRequest.read(self.paths)

    def is_wanted(self) -> bool:
        return self.request() is None

    def words(self) -> str:
        request = self.request()
        return request.why if request is not None else "stopped"


def _file(paths: RunPaths) -> Path:
    return paths.rented / "stop.json"
