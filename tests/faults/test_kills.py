"""A dozen kill -9 at random places, half of them inside a save. `make soak` does two hundred."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed", reason="the training road needs dtrain[train]")

ROOT = Path(__file__).resolve().parents[2]
KILLS = 12


@pytest.mark.slow
@pytest.mark.xdist_group("gloo")
def test_a_dozen_kills_cost_no_step_and_no_checkpoint(tmp_path: Path) -> None:
    """In a process of its own: it forks ranks from loaded libraries, which a test runner's threads forbid."""
    told = tmp_path / "kills.json"
    command = [sys.executable, "-m", "tests.soak.kills", "--kills", str(KILLS), "--seed", "7", "--json", str(told)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    tally = json.loads(told.read_text())
    assert tally["kills"] == KILLS
    assert tally["bit_equal_runs"] == tally["runs"] >= 2
    assert tally["unreadable_checkpoints"] == 0
