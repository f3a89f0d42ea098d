"""One rank of a run, from its folder to its exit code. A worker needs only that folder, and never knows who started it.

wait for data ─▶ schedule ─▶ join the ranks ─▶ model, engine ─▶ resume ─▶ self-test ─▶ train ─▶ export ─▶ report
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.config.load import load
from dtrain.errors import DtrainError, RunFailed
from dtrain.files import read_json, write_json
from dtrain.own_process import die_with_parent, speak_into
from dtrain.paths import RunPaths
from dtrain.planner.choice import Choice
from dtrain.train.signals import StopFlag

INTERRUPTED = 75
STATE_EVERY_SECONDS = 0.5


def main(folder: Path) -> int:
    """Run this rank to its end. Returns the contract's exit code; what went wrong is in logs/rank-N.error.json."""
    paths = RunPaths.of(folder)
    rank = int(os.environ.get("RANK", "0"))
    stop = StopFlag()
    stop.listen()
    if "RANK" in os.environ:  # started by torchrun: its terminal is nobody's
        die_with_parent()
        speak_into(paths.rank_log(rank))
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # the watchdog asks where this rank is
    paths.rank_error(rank).unlink(missing_ok=True)
    try:
        return run_rank(paths, stop)
    except DtrainError as error:
        tell(paths, rank, error.as_json())
        return error.exit_code
    except Exception as error:
        told = getattr(error, "told", None)  # of OutOfMemory, whose room loads torch
        tell(paths, rank, told or RunFailed(f"{type(error).__name__}: {error}").as_json())
        return 1


def tell(paths: RunPaths, rank: int, error: dict[str, Any]) -> None:
    trace = traceback.format_exc()
    print(trace, file=sys.stderr, flush=True)
    write_json(paths.rank_error(rank), {**error, "rank": rank, "time": time.time(), "traceback": trace})


class StateFile:
    """state.json, by rank 0: the stage a run is in and how far it got."""

    def __init__(self, path: Path, writes: bool, steps: int | None = None) -> None:
        self.path = path
        self.writes = writes
        self.steps = steps
        self.step = 0
        self.epoch = 0.0
        self._written = 0.0

    def stage(self, name: str) -> None:
        self._write(name)

    def reached(self, step: int, epoch: float) -> None:
        """A step was done; written at most every half second."""
        self.step, self.epoch = step, epoch
        if time.monotonic() - self._written > STATE_EVERY_SECONDS or step == self.steps:
            self._write("training")

    def _write(self, stage: str) -> None:
        if self.writes:
            document = {
                "schema_version": 1, "stage": stage, "step": self.step, "steps": self.steps, "epoch": self.epoch,
                "time": time.time(),
            }  # fmt: skip
            with contextlib.suppress(OSError):  # a full disk: told by what has more to write, and no reason to end
                write_json(self.path, document, durable=False)
            self._written = time.monotonic()


def wait_for_data(paths: RunPaths, stop: StopFlag) -> Path:
    """The cache folder of the tokenised rows, once `dtrain.data.prepare` has written data.json.

    The supervisor ends this rank if that fails. Started by hand, alone, the rank prepares the data itself.
    """
    if "RANK" not in os.environ:
        from dtrain.data import prepare

        prepare.main(paths.output)
    while not paths.data.exists():
        if stop.asked:
            sys.exit(INTERRUPTED)
        time.sleep(0.02)
    return Path(read_json(paths.data)["cache"])


def run_rank(paths: RunPaths, stop: StopFlag) -> int:
    """Everything after the process is set up. Heavy imports happen while the data is being prepared elsewhere."""
    import torch  # noqa: F401
    import transformers
    import transformers.modeling_utils
    from deepspeed.runtime import engine  # noqa: F401

    transformers.utils.logging.disable_progress_bar()  # a log is no terminal

    from dtrain.train import run as training

    gc.freeze()  # half a million imported objects, which no collection need look through again

    config = load(paths.config).config
    plan = read_json(paths.plan)
    return training.execute(paths, config, Choice.from_json(plan["choice"]), plan, stop)


@dataclass(frozen=True)
class Voice:
    """Words of rank 0 for people: a line in its log, and kept for the report."""

    speaks: bool

    def __call__(self, line: str) -> None:
        if self.speaks:
            with contextlib.suppress(OSError):  # the log's disk is full
                print(f"[dtrain] {line}", flush=True)
