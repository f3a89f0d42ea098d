"""The straight road on real parts: the command line, torchrun, DeepSpeed, a tiny Llama."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.cli import Place
from tests.e2e.materials import stories, write_jsonl, write_model

YAML = """\
base_model: ./model
datasets:
  - path: rows.jsonl
    type:
      field_instruction: synopsis
      field_output: short_story
      format: "<|user|>\\n {instruction} </s>\\n<|assistant|>"
      no_input_format: "<|user|> {instruction} </s>\\n<|assistant|>"
sequence_len: 256
micro_batch_size: 2
max_steps: 3
learning_rate: 1e-3
output_dir: ./out
"""


def make_place_in(folder: Path) -> Place:
    write_model(folder / "model")
    write_jsonl(folder / "rows.jsonl", stories(40))
    (folder / "tiny.yaml").write_text(YAML)
    return Place(folder)


@pytest.fixture
def make_place(tmp_path: Path) -> Iterator[Callable[..., Place]]:
    """Folders with a model, rows and a config; what a test left running in them is ended."""
    made: list[Place] = []

    def make(name: str = "place") -> Place:
        made.append(make_place_in(tmp_path / name))
        return made[-1]

    yield make
    for place in made:
        for process in place.processes():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
def place(make_place: Callable[..., Place]) -> Place:
    return make_place()
