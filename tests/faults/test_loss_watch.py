"""Which steps are to blame."""

from __future__ import annotations

from pathlib import Path

from dtrain.train.loss_watch import LossWatch, failure, passed, write_down


def test_a_loss_that_is_no_number_is_bad_at_once() -> None:
    watch = LossWatch()
    assert watch.bad_steps(0, 1e9) == []  # no threshold was said
    assert watch.bad_steps(1, float("nan")) == [1]
    assert watch.bad_steps(2, float("inf")) == [2]


def test_a_high_loss_is_bad_after_patience_in_a_row() -> None:
    watch = LossWatch(threshold=5.0, patience=2)
    assert [watch.bad_steps(step, loss) for step, loss in enumerate([6.0, 4.0, 6.0, 7.0])] == [[], [], [], [2, 3]]


def test_steps_are_written_down_once(tmp_path: Path) -> None:
    file = tmp_path / "passed.json"
    assert passed(file) == frozenset()
    write_down(file, [3], float("nan"), [[9, 8]])
    write_down(file, [3, 4], 7.0, [[9, 8], [1]])
    assert passed(file) == {3, 4}


def test_the_rows_are_named() -> None:
    told = failure([3], float("nan"), [[9, 8]], passes=False)
    assert "the loss of step 4 is no number; its rows: 8, 9" in told.message
    assert told.fix is not None
