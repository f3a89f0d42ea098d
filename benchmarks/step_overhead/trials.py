"""Trials by turns: each contender is one long training run that stands still until it is told to run one epoch.

    parent                         contender (one process a rank)
      │                              train, warm up ──▶ "ready"
      │── "go" ────────────────────▶ one epoch        ──▶ seconds
      │── "go" … "end" ────────────▶

A loop calls `Clock.tick` after each optimizer step and knows nothing else. So starting costs nothing, each contender
runs its own real loop, and only one of them works at a time.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 300.0


@dataclass(frozen=True)
class Contender:
    name: str
    kind: str
    """A key of `station.LOOPS`."""
    world: int = 1
    threads: int = 2
    """Of each rank."""
    options: dict[str, Any] = field(default_factory=dict)


class TrialsOver(Exception):
    """Raised in a contender's loop when no more trials are wanted."""


@dataclass(frozen=True)
class Trial:
    """One epoch: how long it took, and the processor time of all ranks, which other work on the machine moves less."""

    seconds: float
    cpu_seconds: float


def _now() -> dict[str, float]:
    return {"seconds": time.perf_counter(), "cpu_seconds": time.process_time()}


class Clock:
    """The contender's side. `steps` of an epoch are timed together."""

    def __init__(self, steps: int, warm_up: int, commands: TextIO, answers: TextIO) -> None:
        self.steps = steps
        self._left = warm_up
        self._commands, self._answers = commands, answers
        self._started: dict[str, float] = {}

    def tick(self) -> None:
        self._left -= 1
        if self._left > 0:
            return
        now = _now()
        self._say({name: now[name] - self._started[name] for name in now} if self._started else {})
        if self._commands.readline().strip() != "go":
            raise TrialsOver
        self._left = self.steps
        self._started = _now()

    def _say(self, told: dict[str, Any]) -> None:
        self._answers.write(json.dumps(told) + "\n")
        self._answers.flush()


@contextmanager
def own_voice() -> Iterator[TextIO]:
    """The process's stdout for answers alone; what libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        yield answers


class Running:
    """The parent's side of one contender: its ranks."""

    def __init__(self, contender: Contender, python: Path, workload: dict[str, Any], logs: Path) -> None:
        self.contender = contender
        port = str(free_port())
        self._log = (logs / f"{contender.name.replace(' ', '-').replace(',', '')}.log").open("w+")
        self._ranks = [self._start(rank, python, workload, port) for rank in range(contender.world)]

    def _start(self, rank: int, python: Path, workload: dict[str, Any], port: str) -> subprocess.Popen[str]:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(self.contender.threads), "OMP_WAIT_POLICY": "passive",
            "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu",
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.contender.world),
            "LOCAL_WORLD_SIZE": str(self.contender.world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        told = json.dumps({"contender": asdict(self.contender), "workload": workload})
        return subprocess.Popen(
            [str(python), "-m", "benchmarks.step_overhead.station", told],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip

    def wait_ready(self) -> None:
        self._answers()

    def trial(self) -> Trial:
        """One epoch, as long as its slowest rank."""
        self._tell("go")
        told = self._answers()
        return Trial(max(one["seconds"] for one in told), sum(one["cpu_seconds"] for one in told))

    def end(self) -> None:
        """Ranks leave their loops; one that does not is killed."""
        for process in self._ranks:
            if process.poll() is None:
                self._tell_one(process, "end")
        for process in self._ranks:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()

    def _tell(self, word: str) -> None:
        for process in self._ranks:
            self._tell_one(process, word)

    @staticmethod
    def _tell_one(process: subprocess.Popen[str], word: str) -> None:
        assert process.stdin is not None
        process.stdin.write(word + "\n")
        process.stdin.flush()

    def _answers(self) -> list[dict[str, Any]]:
        return [json.loads(self._line(process)) for process in self._ranks]

    def _line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"{self.contender.name} ended:\n{self._log.read()[-6000:]}")
        return line


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def interleaved(
    contenders: Sequence[Contender], pythons: dict[str, Path], workload: dict[str, Any], repetitions: int, logs: Path
) -> dict[str, list[Trial]]:
    """Trials by contender, one a repetition; the order turns round at each repetition."""
    trials: dict[str, list[Trial]] = {contender.name: [] for contender in contenders}
    with ExitStack() as stack:
        running = []
        for contender in contenders:  # one after another: starting is not what is measured here
            one = Running(contender, pythons[contender.kind], workload, logs)
            stack.callback(one.end)
            one.wait_ready()
            running.append(one)
            print(f"  ready: {contender.name}", file=sys.stderr, flush=True)
        for repetition in range(repetitions):
            for one in running if repetition % 2 == 0 else reversed(running):
                trials[one.contender.name].append(one.trial())
            print(f"  repetition {repetition + 1} of {repetitions}", file=sys.stderr, flush=True)
    return trials
