"""The benchmark's shapes: what it feeds every contender, and what it makes of their times. No times are measured."""

from __future__ import annotations

import io
import json
from itertools import chain
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the training road needs dtrain[train]")

from benchmarks.step_overhead import bare_loops, curves, summary  # noqa: E402
from benchmarks.step_overhead.trials import Clock, Contender, Trial, TrialsOver  # noqa: E402
from benchmarks.step_overhead.workload import Workload  # noqa: E402
from dtrain.data.rows import trained_positions  # noqa: E402

WORKLOAD = Workload()


# --- every contender trains the same tokens ---------------------------------------------------------------------------


def trained_labels(inputs: dict[str, Any]) -> int:
    return int((inputs["labels"][:, 1:] != -100).sum())


@pytest.mark.parametrize("kind", ["packed", "padded", "sorted"])
@pytest.mark.parametrize("world", [1, 2])
def test_an_epoch_of_a_bare_loop_holds_every_row_once(kind: str, world: int) -> None:
    steps = bare_loops.steps_of(WORKLOAD, kind, world)
    batches = [bare_loops.collate(WORKLOAD, kind, batch) for step in steps for batch in step]
    assert all(len(step) == world for step in steps)  # no rank repeats another's work
    assert sum(trained_labels(inputs) for inputs in batches) == WORKLOAD.trained_tokens
    assert sum(bare_loops.trained_in(WORKLOAD, kind, step) for step in steps) == WORKLOAD.trained_tokens
    real = sum(int((inputs["input_ids"] != 0).sum()) for inputs in batches)
    assert real == WORKLOAD.real_tokens


def test_windows_hold_every_row_once_and_are_nearly_full() -> None:
    assert sorted(chain.from_iterable(WORKLOAD.windows)) == list(range(WORKLOAD.rows))
    assert WORKLOAD.real_tokens > 0.95 * len(WORKLOAD.windows) * WORKLOAD.window


def test_rows_are_a_skewed_mix_with_masked_prompts() -> None:
    rows = WORKLOAD.token_rows
    assert rows.lengths.mean() > 1.2 * np.median(rows.lengths)
    assert [trained_positions(rows.labels(row).tolist()) for row in range(len(rows))] == rows.trained.tolist()
    assert 0.5 < WORKLOAD.trained_tokens / WORKLOAD.real_tokens < 0.7


def test_documents_of_a_window_do_not_see_each_other() -> None:
    """The packed loop's loss is that of its rows alone: it is the fair thing to compare with."""
    small = Workload(layers=1, hidden=32, intermediate=64, vocabulary=64, window=64, rows=6, median_tokens=20)
    model = small.model().eval()
    inputs = bare_loops.packed(small, small.windows)
    together = model(**inputs, num_items_in_batch=1).loss.item()
    alone = 0.0
    for row in range(small.rows):
        alone += model(**bare_loops.padded(small, [row]), num_items_in_batch=1).loss.item()
    assert together == pytest.approx(alone, rel=1e-5)


# --- the clock --------------------------------------------------------------------------------------------------------


def test_a_clock_warms_up_then_times_epochs_until_told_to_end() -> None:
    answers = io.StringIO()
    clock = Clock(steps=2, warm_up=3, commands=io.StringIO("go\ngo\nend\n"), answers=answers)
    for _ in range(3 + 2 + 1):
        clock.tick()
    with pytest.raises(TrialsOver):
        clock.tick()
    told = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert told[0] == {}  # ready
    assert [sorted(one) for one in told[1:]] == [["cpu_seconds", "seconds"]] * 2


# --- what becomes of the times ----------------------------------------------------------------------------------------


def trials(**seconds: list[float]) -> dict[str, list[Trial]]:
    return {name.replace("_", " "): [Trial(one, one) for one in values] for name, values in seconds.items()}


def test_a_ratio_compares_trials_of_one_repetition() -> None:
    """The machine was twice as slow in the second repetition: it does not matter."""
    told = trials(ours=[1.0, 2.0, 1.0], theirs=[1.5, 3.0, 1.5])
    assert summary.ratio(told, "ours", "theirs") == 1.5


def test_goals_take_dtrain_and_trl_at_their_best_and_say_what_was_not_measured() -> None:
    told = trials(dtrain_unpacked=[2.0], dtrain_packed=[1.0], bare_packed=[1.2], bare_sorted=[1.5])
    goals = {goal.name: goal for goal in summary.throughput_goals(told)}
    assert goals["over a packed bare loop"].measured == pytest.approx(1.2)
    assert goals["over a packed bare loop"].reached is False
    assert goals["over length-sorted padding"].reached is True
    assert goals["over TRL's best"].reached is None
    with_trl = told | {"trl packing": [Trial(4.0, 4.0)], "trl padding_free": [Trial(1.6, 1.6)]}
    best = next(goal for goal in summary.throughput_goals(with_trl) if goal.name == "over TRL's best")
    assert best.measured == pytest.approx(1.6)


def test_a_table_states_tokens_per_second() -> None:
    told = trials(ours=[2.0, 4.0, 2.0], theirs=[4.0, 8.0, 4.0])
    rows = [summary.figures(Contender(name, "bare"), told[name], 1000, 600) for name in ("ours", "theirs")]
    assert rows[0]["trained_tokens_per_second"] == 300
    assert rows[0]["real_tokens_per_second"] == 500
    lines = summary.table(rows, told, "theirs")
    assert lines[1].split()[-2:] == ["2.00", "2.00"]
    assert lines[2].split()[-2:] == ["1.00", "1.00"]


# --- the loss curves --------------------------------------------------------------------------------------------------

STORY = {"synopsis": "A baker looks for a cat.", "short_story": "It sat in the oven. Cold, luckily."}


def test_rows_take_three_shapes() -> None:
    alpaca = [curves.alpaca_row(index, STORY) for index in range(3)]
    assert [bool(row["input"]) for row in alpaca] == [True, False, False]
    roles = [[turn["role"] for turn in curves.messages_row(index, STORY)["messages"]] for index in range(3)]
    assert roles == [
        ["user", "assistant"],
        ["system", "user", "assistant"],
        ["user", "assistant", "user", "assistant"],
    ]


def test_trl_gets_the_same_prompt_as_text() -> None:
    row = curves.trl_row("alpaca", curves.alpaca_row(0, STORY))
    assert row["prompt"].endswith(f"### Input:\n{STORY['synopsis']}\n\n### Response:\n")
    assert row["completion"] == STORY["short_story"]


def test_rows_that_differ_are_counted() -> None:
    ours = {"input_ids": [[1, 2], [3, 4], [5, 6]], "labels": [[-100, 2], [-100, 4], [-100, -100]]}
    theirs = {"input_ids": [[1, 2], [3, 9], [5, 6]], "labels": [[1, 2], [-100, 9], [-100, 6]]}
    assert curves.differing(ours, theirs, 3) == 2  # not the first: nothing predicts a row's first token
