"""Runs whose worker is a stand-in: real processes, real signals, no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dtrain.launch import spec
from dtrain.launch.api import Job
from dtrain.launch.create import new_id
from dtrain.launch.process import end_run_processes, processes_of_run
from dtrain.paths import RunPaths
from tests.launch import cli
from tests.waiting import PATIENCE_SECONDS

TINY_MODEL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
TINY_YAML = """\
base_model: ./model
reinit_weights: true
train_tokenizer: {vocab_size: 300}
datasets:
  - path: rows.jsonl
    type: alpaca
sequence_len: 128
micro_batch_size: 2
max_steps: 20
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of its own for each test."""
    monkeypatch.setenv("DTRAIN_HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("STAND_IN_")]:
        monkeypatch.delenv(name)
    return tmp_path / "home"


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, so that what a launcher renders here names the stand-ins."""
    monkeypatch.setattr(spec, "prepare_command", lambda folder: (sys.executable, cli.STAND_IN, "prepare", folder))
    monkeypatch.setattr(spec, "worker_arguments", lambda folder: (cli.STAND_IN, "worker", folder))
    monkeypatch.setattr(spec, "torchrun_command", cli.quick_torchrun)


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Jobs with a run folder; whatever a test leaves running is ended after it."""
    made: list[Job] = []

    def make(folder: Path | None = None, ranks: int = 2, **more: Any) -> Job:
        run_id = new_id()
        job = Job(run_id, "test", folder or tmp_path / run_id, 1, ranks, "cpu", **more)
        RunPaths(job.folder).run.mkdir(parents=True)
        made.append(job)
        return job

    yield make
    for job in made:
        end_run_processes(job.run_id)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder as a person has it: a YAML, a model's config.json, some rows."""
    folder = tmp_path / "project"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text(json.dumps(TINY_MODEL))
    (folder / "tiny.yaml").write_text(TINY_YAML)
    rows = [{"instruction": f"count {number}", "output": f"{number} " * 20} for number in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def is_training(paths: RunPaths) -> bool:
    """A step was logged, and the second rank listens too."""
    return all(path.exists() and path.stat().st_size > 0 for path in (paths.metrics, paths.rank_log(1)))


GONE_SECONDS = 10.0
"""For processes that were killed to leave a loaded machine's list; none is told to end in this time."""


def left_over(run_id: str) -> list[int]:
    """Pids of the run that are still there, a moment after it ended."""
    deadline = time.monotonic() + GONE_SECONDS
    while (there := processes_of_run(run_id)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [process.pid for process in there]


class Dtrain:
    """The command line as a person uses it, in a project's folder, with stand-ins behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.launch.cli", *arguments],
            cwd=self.folder, env={**os.environ, "PYTHONPATH": os.getcwd(), "COLUMNS": "100", **env}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def __call__(self, *arguments: str, **env: str) -> int:
        """Run it to its end; the exit code. What it said is in `out` and `err`."""
        process = self.start(*arguments, **env)
        self.out, self.err = process.communicate(timeout=PATIENCE_SECONDS)
        return process.returncode

    def json(self, *arguments: str, **env: str) -> Any:
        self(*arguments, **env)
        return json.loads(self.out)


@pytest.fixture
def dtrain(project: Path) -> Iterator[Dtrain]:
    yield Dtrain(project)
    for about in project.glob("**/dtrain/run.json"):
        end_run_processes(json.loads(about.read_text())["id"])
