"""`rental.json`: how a rented run stands, written by its keeper, read by every screen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from dtrain.files import write_json
from dtrain.launch.ending import read_or_none
from dtrain.paths import RunPaths

Stage = Literal["choosing", "creating", "booting", "preparing", "training", "fetching", "destroying", "over"]
BEFORE_TRAINING = ("choosing", "creating", "booting", "preparing")


@dataclass(frozen=True)
class StageTime:
    stage: Stage
    began: float
    """Seconds since 1970."""
    usd: float
    """Spent when it began."""


@dataclass(frozen=True)
class Progress:
    run_id: str
    stage: Stage
    words: str
    """One line for people: what is done now, or what went wrong."""
    stages: Sequence[StageTime]
    usd_per_hour: float
    usd: float
    """Until `time`."""
    estimated_usd: float | None
    limit_usd: float | None
    machines: Sequence[Mapping[str, Any]]
    """Those that may exist: name, id, region, machine, address, console."""
    refused: Mapping[str, Any] | None
    """An error object: nothing was rented."""
    time: float
    life: int = 1
    run_sent: bool = False
    """To the machines that exist now: before that they hold nothing of it."""

    @property
    def over(self) -> bool:
        return self.stage == "over"

    def at(self, stage: Stage, words: str, usd: float) -> Progress:
        """The same stage again only changes the words."""
        now = round(time.time(), 3)
        same = bool(self.stages) and self.stages[-1].stage == stage
        stages = self.stages if same else [*self.stages, StageTime(stage, now, round(usd, 4))]
        return replace(self, stage=stage, words=words, stages=stages, usd=round(usd, 4), time=now)

    def write(self, paths: RunPaths) -> None:
        write_json(paths.rental, {"schema_version": 1, **asdict(self)}, durable=False)

    @classmethod
    def read(cls, paths: RunPaths) -> Progress | None:
        told = read_or_none(paths.rental)
        if told is None:
            return None
        known = {one.name: told[one.name] for one in fields(cls) if one.name in told}
        return cls(**{**known, "stages": [StageTime(**one) for one in told["stages"]]})

    @classmethod
    def fresh(cls, run_id: str, life: int) -> Progress:
        return cls(run_id, "choosing", "looking for machines", [], 0.0, 0.0, None, None, [], None, time.time(), life)


def money_words(progress: Progress) -> str:
    """`$0.42 of about $11.80`."""
    now = progress.usd + progress.usd_per_hour * max(0.0, time.time() - progress.time) / 3600
    spent = progress.usd if progress.over else now
    return f"${spent:,.2f}" + (f" of about ${progress.estimated_usd:,.2f}" if progress.estimated_usd else "")


# --- who keeps it -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def kept(paths: RunPaths, patience_seconds: float = 2.0) -> Iterator[bool]:
    """Hold the run as its one keeper; False where another does."""
    paths.rented.mkdir(parents=True, exist_ok=True)
    handle = os.open(paths.keeper_lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield _locked(handle, patience_seconds)
    finally:
        os.close(handle)


def _locked(handle: int, patience_seconds: float) -> bool:
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)  # somebody may only be looking whether a keeper lives


def has_keeper(paths: RunPaths) -> bool:
    try:
        handle = os.open(paths.keeper_lock, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
