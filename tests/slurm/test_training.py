"""The whole road on two nodes of two ranks: launched by the command line, preempted, requeued, the same loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from dtrain.paths import RunPaths
from tests.e2e.cli import Place, metrics, reached
from tests.e2e.conftest import make_place  # noqa: F401
from tests.launch.conftest import left_over
from tests.slurm.cluster import Cluster
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]
STEPS = 60
RUN = (
    "launch", "tiny.yaml", "--profile", "cpux2x2", "--on", "slurm", "--detach", "--json", "--set", "zero_stage=2",
    "--set", f"max_steps={STEPS}", "--set", "num_epochs=20", "--set", "wandb_project=s", "--set", "wandb_mode=offline",
)  # fmt: skip
NAMES = ("step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "trained_tokens", "tokens_seen")


def trajectory(run: RunPaths) -> list[tuple[Any, ...]]:
    return [tuple(line.get(name) for name in NAMES) for line in metrics(run)]


def launched(place: Place, partition: str) -> RunPaths:
    done = place.dtrain(*RUN, "--set", f"launchers.slurm.partition={partition}")
    assert done.code == 0, done.out + done.err
    return place.run("out")


def test_two_nodes_of_two_ranks_preempted_and_not(cluster: Cluster, make_place: Callable[..., Place]) -> None:  # noqa: F811
    """Both at once: one run in the partition that takes the nodes from the other's."""
    calm, cut = make_place("calm"), make_place("cut")
    calm_run, cut_run = launched(calm, "high"), launched(cut, "low")
    wait_until(reached(cut_run, 5))
    preemptor = cluster("sbatch", "--parsable", "-p", "high", "-N2", "-c2", "-o", "/dev/null", "--wrap=sleep 1").strip()
    wait_until(lambda: cut.dtrain("status", "tiny", "--json").document["state"] == "pending")
    saved = max(int(path.parent.name[5:]) for path in cut_run.checkpoints.glob("step-*/manifest.json"))
    assert 5 <= saved < STEPS
    for place, run in ((calm, calm_run), (cut, cut_run)):
        wait_until(run.exit.exists)
        status = place.dtrain("status", "tiny", "--json").document
        assert (status["state"], status["exit_code"]) == ("done", 0), status
    assert preemptor in cluster("squeue", "--states=all", "--noheader", "--format=%i|%T")

    assert trajectory(cut_run) == trajectory(calm_run)
    assert [line["step"] for line in metrics(cut_run)] == list(range(1, STEPS + 1))
    assert f"going on after step {saved}" in cut_run.rank_log(0).read_text()
    assert (cut.folder / "out" / "model.safetensors").exists()
    one_wandb_run_of_two_lives(cut_run)
    the_nodes_are_two(cut, cut_run)
    assert [left_over(json.loads(run.about.read_text())["id"]) for run in (calm_run, cut_run)] == [[], []]


def one_wandb_run_of_two_lives(run: RunPaths) -> None:
    lives = [folder.name for folder in (run.run / "wandb").glob("offline-run-*")]
    assert len(lives) == 2
    assert {name.rpartition("-")[2] for name in lives} == {json.loads((run.run / "wandb.json").read_text())["run_id"]}


def the_nodes_are_two(place: Place, run: RunPaths) -> None:
    """Each half of the ranks on a node of its own, over the interface that leads to the other; all logs told."""
    assert "preflight: 2 nodes reach each other" in run.launch_log.read_text()
    assert "node 0 is slurm1, 10.78.0.11 on fabric0" in run.launch_log.read_text()
    assert "node 1 is slurm2, 10.78.0.12 on fabric0" in run.node(1).log.read_text()
    told = place.dtrain("logs", "tiny").out
    assert all(f"[{who}]" in told for who in ("rank 0", "rank 1", "rank 2", "rank 3", "launch", "node 1", "job"))
