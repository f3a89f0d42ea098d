"""Early stopping, and what the loop does at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from dtrain.paths import RunPaths
from dtrain.train.checkpoint import newest_good
from tests.train.cases import Case
from tests.train.conftest import Run

pytestmark = [pytest.mark.xdist_group("gloo"), pytest.mark.slow]


def test_a_run_whose_held_out_loss_does_not_fall_stops_early_and_is_saved(run_cases: Run, tmp_path: Path) -> None:
    """A learning rate that throws the weights about, three evaluations of patience."""
    told = run_cases(2, [
        Case("wild", 2, 4, steps=30, learning_rate=3.0, eval_every=1, patience=3, folder=str(tmp_path)),
    ])["wild"]  # fmt: skip
    losses = told["eval_losses"]
    assert len(losses) < 30
    assert min(losses) not in losses[-3:]
    saved, _ = newest_good(RunPaths(tmp_path))
    assert saved is not None
    assert saved.step == len(losses)
    assert saved.progress.best_eval_loss == min(losses)
