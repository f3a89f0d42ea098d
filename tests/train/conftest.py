"""Real gloo ranks through torchrun: many cases in one start, because a start costs seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the training road needs dtrain[train]")
pytest.importorskip("deepspeed", reason="the training road needs dtrain[train]")

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[[int, list[Any]], dict[str, dict[str, Any]]]


class Forker:
    """The process that forks ranks (tests.train.forked), started with the first cases of a session."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def start(self, world: int, folder: Path) -> list[int]:
        if self._process is None:
            env = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
            command = [sys.executable, "-m", "tests.train.forked"]
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"world": world, "folder": str(folder)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        codes: list[int] = json.loads(self._process.stdout.readline())
        return codes

    def end(self) -> None:
        if self._process is not None:
            self._process.communicate()


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    one = Forker()
    yield one
    one.end()


@pytest.fixture(scope="session")
def run_cases(tmp_path_factory: pytest.TempPathFactory, forker: Forker) -> Run:
    """Run cases on `world` ranks; results by case name."""

    def run(world: int, cases: list[Any]) -> dict[str, dict[str, Any]]:
        folder = tmp_path_factory.mktemp(f"world-{world}")
        write_cases(folder, cases)
        codes = forker.start(world, folder)
        logs = "\n".join(file.read_text()[-4000:] for file in sorted(folder.glob("rank-*.log")) if any(codes))
        assert not any(codes), f"{codes}\n{logs}"
        return results(folder, world)

    return run


def write_cases(folder: Path, cases: list[Any]) -> None:
    """What `tests.train.cases` reads: models of all families, and the cases."""
    from tests.train.cases import write_model_folder

    write_model_folder(folder)
    for family in {case.family for case in cases} - {"llama"}:
        write_model_folder(folder / family, family)
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))


def results(folder: Path, world: int) -> dict[str, dict[str, Any]]:
    lines = (folder / f"results-{world}.jsonl").read_text().splitlines()
    return {told["name"]: told for told in map(json.loads, lines)}
