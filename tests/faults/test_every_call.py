"""Kill -9 at every single change that saving makes to the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed", reason="the training road needs dtrain[train]")

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.xdist_group("gloo")
def test_whatever_call_it_dies_at_each_checkpoint_is_whole_and_one_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.every_call", str(tmp_path)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["calls"] > 40
    assert told["wrong"] == []
    assert told["without_a_good_one"] < told["calls"] / 3  # only while the first of four was being written
