"""A step whose rows throw the loss up is not kept: the run goes back to the checkpoint before it, and past its rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.cli import metrics, said
from tests.e2e.conftest import make_place_in
from tests.e2e.materials import stories, write_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e")]

BAD_STEP = 31
STEPS = 40


def test_a_bad_step_is_passed_counted_and_its_rows_are_named(tmp_path: Path) -> None:
    place = make_place_in(tmp_path)
    rows = stories(4 * STEPS)
    first = 4 * (BAD_STEP - 1)
    for number in range(first, first + 4):
        strange = "".join(chr(0x4E00 + 37 * i * number % 0x4000) for i in range(60))
        rows[number] = {"synopsis": "??", "short_story": strange}
    write_jsonl(place.folder / "rows.jsonl", rows)
    settings = (
        f"max_steps={STEPS}", "shuffle=false", "save_steps=5", "zero_stage=2", "max_restarts=1", "learning_rate=5e-3",
        "loss_watchdog_threshold=6.6", "loss_watchdog_patience=1", "loss_watchdog_action=pass", "num_epochs=1",
    )  # fmt: skip
    words = ("launch", "tiny.yaml", "--profile", "cpu", *(word for one in settings for word in ("--set", one)))
    done = place.dtrain(*words, "--json")
    run = place.run("out")
    assert done.code == 0, (done.out + done.err, [line["loss"] for line in metrics(run)])
    assert said(run)["code"] == 0
    [bad] = json.loads(run.passed.read_text())["steps"]
    assert bad["step"] == BAD_STEP
    assert bad["rows"] == list(range(first, first + 4))
    assert bad["loss"] > 6.6
    assert [line["step"] for line in metrics(run)] == [step for step in range(1, STEPS + 1) if step != BAD_STEP]
    assert metrics(run)[-1]["passed_steps"] == 1
    first_life = json.loads((run.past / "1" / "exit.json").read_text())
    assert f"the loss of step {BAD_STEP} is" in first_life["reason"]
    assert f"its rows: {first}, " in first_life["reason"]
