"""`max_restarts` on several nodes: all of them begin another life in the same job, from the last checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from dtrain.launch import spec
from dtrain.launch.api import Job
from dtrain.paths import RunPaths
from tests.launch.conftest import left_over
from tests.slurm.cluster import Cluster
from tests.slurm.test_lives import REAL_TORCHRUN, Life

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

CONFIG = "base_model: x\ndatasets: [{path: y, type: alpaca}]\nlearning_rate: 1\nmax_restarts: 1\n"


def test_both_nodes_begin_again_after_a_rank_failed(
    cluster: Cluster, make_job: Callable[..., Job], stand_ins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spec, "torchrun_command", REAL_TORCHRUN)
    for name, value in (("STEPS", "1000"), ("STEP_SECONDS", "0.05"), ("FAILS", "3@20")):
        monkeypatch.setenv(f"STAND_IN_{name}", value)
    job = replace(make_job(), nodes=2)
    paths = RunPaths(job.folder)
    paths.config.write_text(CONFIG)
    life = Life(cluster, job)
    life.wait_state("failed")
    first = json.loads((paths.past / "1" / "exit.json").read_text())
    last = json.loads(paths.exit.read_text())
    assert first["reason"] == last["reason"] == "rank 3: RuntimeError: the stand-in was told to fail"
    assert first["ended"] < last["ended"]
    assert "restart 1, on the same nodes" in paths.job_log.read_text()
    assert "restart 2" not in paths.job_log.read_text()
    assert left_over(life.job.run_id) == []
