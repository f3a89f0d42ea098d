"""The `dtrain` command in real processes, each test with a registry, a cache and an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtrain.launch.process import Process, every_process
from dtrain.paths import RunPaths

COMMAND = (sys.executable, "-m", "dtrain")
CLOSED = "http://127.0.0.1:9"
"""The discard port: nothing listens there."""
_NOT_HANDED_ON = ("HF_", "WANDB_", "DTRAIN_", "TRANSFORMERS_", "HUGGING_FACE_", "MASTER_", "RANK", "WORLD_SIZE")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str
    seconds: float

    @property
    def document(self) -> dict[str, Any]:
        """stdout as the one JSON document it must be."""
        document: dict[str, Any] = json.loads(self.out)
        assert document["schema_version"] == 1
        return document


@dataclass
class Place:
    """A working directory of a person of their own: no hub, no W&B, no runs yet."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_HANDED_ON)}
        own = {
            "DTRAIN_HOME": str(self.folder / "home"), "HF_HOME": str(self.folder / "hf"), "HF_ENDPOINT": CLOSED,
            "OMP_NUM_THREADS": "1", "COLUMNS": "120",
        }  # fmt: skip
        return kept | own | self.env | dict(more or {})

    def dtrain(self, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 600.0) -> Result:
        started = time.monotonic()
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=self.folder, env=self.environment(env), timeout=timeout,
            capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr, time.monotonic() - started)

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """In the foreground of a process group of its own, as a shell does it: Ctrl-C is a signal to that group."""
        return subprocess.Popen(
            [*COMMAND, *arguments], cwd=self.folder, env=self.environment(env), process_group=0,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, output: str) -> RunPaths:
        return RunPaths(self.folder / output)

    def processes(self) -> list[Process]:
        """Whatever still runs with this place's registry in its environment."""
        mark = f"DTRAIN_HOME={self.folder / 'home'}\0".encode()
        return [one for one in every_process() if one.running and one.pid != os.getpid() and mark in _environ(one.pid)]


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def rank_pid(place: Place, rank: int) -> int:
    """The process of a rank: the oldest one that torchrun told so."""
    told = f"\0RANK={rank}\0".encode()
    return min(one.pid for one in place.processes() if told in _environ(one.pid))


def metrics(paths: RunPaths) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl so far."""
    if not paths.metrics.exists():
        return []
    return [json.loads(line) for line in paths.metrics.read_text().splitlines() if line.endswith("}")]


def has_logged(paths: RunPaths, step: int) -> bool:
    return any(line["step"] >= step for line in metrics(paths))


def reached(paths: RunPaths, step: int) -> Callable[[], bool]:
    """For `wait_until`: the run has logged this step. A run that ends before it is a failed test at once."""

    def look() -> bool:
        assert not paths.exit.exists(), paths.exit.read_text()
        return has_logged(paths, step)

    return look


def said(paths: RunPaths) -> dict[str, Any]:
    exit_: dict[str, Any] = json.loads(paths.exit.read_text())
    return exit_
