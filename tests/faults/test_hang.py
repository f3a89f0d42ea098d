"""A rank that hangs costs seconds, not the night: the watchdog names it, shows where all ranks are, life goes on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.e2e.cli import metrics, rank_pid, reached, said
from tests.e2e.conftest import make_place_in
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e")]

HANG_SECONDS = 3.0
STEPS = 150


def test_a_frozen_rank_is_named_and_the_run_goes_on_by_itself(tmp_path: Path) -> None:
    place = make_place_in(tmp_path)
    settings = (
        f"max_steps={STEPS}", "num_epochs=30", "save_steps=10", "zero_stage=2", "max_restarts=1",
        f"hang_seconds={HANG_SECONDS}",
    )  # fmt: skip
    words = ("launch", "tiny.yaml", "--profile", "cpu", *(word for one in settings for word in ("--set", one)))
    started = place.dtrain(*words, "--detach", "--json")
    assert started.code == 0, started.err
    run = place.run("out")
    wait_until(reached(run, 20))
    os.kill(rank_pid(place, 1), signal.SIGSTOP)
    first_life = run.past / "1" / "exit.json"
    wait_until(first_life.exists)
    told = json.loads(first_life.read_text())
    assert told["code"] == 1
    assert told["rank"] == 1
    assert told["reason"].startswith("rank 1 hangs: for ")
    assert "state T" in told["reason"]
    for rank in (0, 1):
        assert "most recent call first" in run.rank_log(rank).read_text()  # faulthandler's own words
    wait_until(run.exit.exists)
    assert said(run)["code"] == 0, said(run)
    assert [line["step"] for line in metrics(run)] == list(range(1, STEPS + 1))
    wait_until(lambda: place.processes() == [])
