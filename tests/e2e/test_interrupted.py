"""However a run is cut short, `dtrain resume` gives what an uninterrupted run would have given, to the last bit."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from dtrain.launch.standing import Supervisor
from dtrain.paths import RunPaths
from tests.e2e import wandb_file, wandb_stub
from tests.e2e.cli import CLOSED, Place, has_logged, metrics, rank_pid, reached, said
from tests.e2e.conftest import make_place_in
from tests.e2e.materials import stories, write_jsonl
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e")]

STEPS = 60
RUN = (
    "launch", "tiny.yaml", "--profile", "cpu", "--set", f"max_steps={STEPS}", "--set", "num_epochs=7",
    "--set", "save_steps=4", "--set", "logging_steps=2",
    "--set", "zero_stage=2", "--set", "val_set_size=4", "--set", "eval_steps=20", "--set", "wandb_project=stories",
)  # fmt: skip
LOGGED = [1, *range(2, STEPS + 1, 2)]
KEY = {"WANDB_API_KEY": "a" * 40}


def trajectory(paths: RunPaths) -> list[tuple[Any, ...]]:
    """What must not depend on how often a run was cut."""
    names = (
        "step",
        "epoch",
        "loss",
        "eval_loss",
        "grad_norm",
        "learning_rate",
        "tokens",
        "trained_tokens",
        "tokens_seen",
    )
    return [tuple(line.get(name) for name in names) for line in metrics(paths)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Where a run has ended that nobody disturbed; W&B offline."""
    place = make_place_in(tmp_path_factory.mktemp("uninterrupted"))
    done = place.dtrain(*RUN, "--set", "wandb_mode=offline")
    assert done.code == 0, done.out + done.err
    run = place.run("out")
    [offline] = (run.run / "wandb").glob("offline-run-*")
    [recorded] = offline.glob("run-*.wandb")
    told, planned = wandb_file.summary_of(recorded), json.loads(run.plan.read_text())
    assert told["planned_peak_allocated_gib"] == planned["memory_gib"]["peak_allocated"]
    assert told["planned_steps"] == planned["schedule"]["steps"]
    assert said(run)["code"] == 0
    assert [line["step"] for line in metrics(run)] == LOGGED
    assert place.processes() == []
    return place


@pytest.fixture
def uninterrupted(finished: Place) -> list[tuple[Any, ...]]:
    return trajectory(finished.run("out"))


def test_a_killed_rank_then_a_killed_supervisor(place: Place, uninterrupted: list[tuple[Any, ...]]) -> None:
    run = place.run("out")
    with wandb_stub.serving() as server:
        env = {**KEY, "WANDB_BASE_URL": server.url}
        started = place.dtrain(*RUN, "--detach", "--json", env=env)
        assert started.code == 0, started.err
        run_id = started.document["id"]
        kill_a_rank(place, run)
        status = place.dtrain("status", run_id, "--json").document
        assert (status["state"], status["exit_code"]) == ("failed", 1)
        assert "rank 1 was killed by SIGKILL" in status["reason"]

        assert place.dtrain("resume", run_id, "--detach", env=env).code == 0
        kill_the_supervisor(place, run)
        assert place.dtrain("status", run_id, "--json").document["state"] == "lost"

        last = place.dtrain("resume", "tiny", env=env)
    assert last.code == 0, last.out + last.err
    assert trajectory(run) == uninterrupted
    assert place.processes() == []
    one_wandb_run(server, run)


def kill_a_rank(place: Place, run: RunPaths) -> None:
    wait_until(reached(run, 10))
    os.kill(rank_pid(place, 1), signal.SIGKILL)
    wait_until(run.exit.exists)
    wait_until(lambda: place.processes() == [])
    assert said(run)["code"] == 1


def kill_the_supervisor(place: Place, run: RunPaths) -> None:
    wait_until(reached(run, 30))
    supervisor = Supervisor.read(run)
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    wait_until(lambda: place.processes() == [])
    assert not run.exit.exists()


def one_wandb_run(server: wandb_stub.Server, run: RunPaths) -> None:
    """One id over three lives; every step arrived, and once a life: only one rank speaks."""
    assert server.run_ids == {json.loads((run.run / "wandb.json").read_text())["run_id"]}
    steps = [row["step"] for rows in server.streamed.values() for row in rows if "loss" in row]
    assert set(range(32, STEPS + 1, 2)) <= set(steps)
    assert len(server.lives) == 3


def test_ctrl_c_twice_then_once(place: Place, uninterrupted: list[tuple[Any, ...]]) -> None:
    """And W&B's server is not there, all the while."""
    run = place.run("out")
    env = {**KEY, "WANDB_BASE_URL": CLOSED, "WANDB_INIT_TIMEOUT": "1"}
    code, words = interrupted(place, 10, twice=True, arguments=RUN, env=env)
    assert code == 130, words
    assert "`wandb sync" in words
    assert said(run)["code"] == 75
    assert place.processes() == []

    code, words = interrupted(place, 30, twice=False, arguments=("resume", "tiny"), env=env)
    assert code == 75, words
    step = said(run)["step"]
    assert (run.checkpoint(step) / "manifest.json").exists()
    assert metrics(run)[-1]["step"] == step - step % 2
    assert f"stopped after step {step}, everything is saved" in words
    assert place.dtrain("status", "tiny", "--json").document["step"] == step
    assert f"go on after step {step}" in words
    assert place.processes() == []

    rows_that_changed_are_refused(place, run)
    last = place.dtrain("resume", "tiny", env=env)
    assert last.code == 0, last.out + last.err
    assert trajectory(run) == uninterrupted


def rows_that_changed_are_refused(place: Place, run: RunPaths) -> None:
    """With the difference. Put back, they are what the run goes on with."""
    rows, data = place.folder / "rows.jsonl", run.data.read_bytes()
    before = rows.read_bytes()
    write_jsonl(rows, stories(30))
    refused = place.dtrain("resume", "tiny")
    assert refused.code == 2, refused.out + refused.err
    assert "the rows changed since the run began" in said(run)["reason"]
    assert run.data.read_bytes() == data
    rows.write_bytes(before)


def interrupted(
    place: Place, step: int, *, twice: bool, arguments: tuple[str, ...], env: dict[str, str]
) -> tuple[int, str]:
    """Ctrl-C at this step, as a terminal sends it: to every process of the foreground's group. Exit code and words."""
    with place.start(*arguments, env=env) as client:
        assert client.stdout is not None
        wait_until(lambda: has_logged(place.run("out"), step) or client.poll() is not None)
        os.killpg(client.pid, signal.SIGINT)
        if twice:
            words = read_until(client.stdout, "Ctrl-C again")
            os.killpg(client.pid, signal.SIGINT)
            return client.wait(), words + client.stdout.read()
        words = client.stdout.read()
        return client.wait(), words


def read_until(stream: Any, words: str) -> str:
    read = ""
    while words not in read:
        line = stream.readline()
        assert line, read
        read += line
    return read


def test_a_finished_run_is_not_trained_again(finished: Place) -> None:
    again = finished.dtrain("resume", "tiny", "--json")
    assert again.code == 2
    assert "is finished" in again.document["error"]["message"]
    taken = finished.dtrain("launch", "tiny.yaml", "--profile", "cpux1", "--json")
    assert taken.code == 2
    assert "dtrain resume" in taken.document["error"]["fix"]
    assert "--set output_dir" in taken.document["error"]["fix"]
