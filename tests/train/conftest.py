"""Real gloo ranks through torchrun: many cases in one start, because a start costs seconds."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the training road needs dtrain[train]")
pytest.importorskip("deepspeed", reason="the training road needs dtrain[train]")

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[[int, list[Any]], dict[str, dict[str, Any]]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def run_cases(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run cases on `world` ranks; results by case name."""
    from tests.train.cases import write_model_folder

    def run(world: int, cases: list[Any]) -> dict[str, dict[str, Any]]:
        folder = tmp_path_factory.mktemp(f"world-{world}")
        write_model_folder(folder)
        for family in {case.family for case in cases} - {"llama"}:
            write_model_folder(folder / family, family)
        (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world),
            "--master-port", str(free_port()), "-m", "tests.train.cases", str(folder), str(folder / "cases.json"),
        ]  # fmt: skip
        env = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
        lines = (folder / f"results-{world}.jsonl").read_text().splitlines()
        return {told["name"]: told for told in map(json.loads, lines)}

    return run
