"""The learning rate equals transformers' schedules, step by step."""

from __future__ import annotations

import pytest
import torch
import transformers

from dtrain.train.lr import LearningRate, warmup_steps


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "constant_with_warmup"])
def test_equals_transformers(kind: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    theirs = transformers.get_scheduler(
        kind, optimizer, num_warmup_steps=7 if kind != "constant" else 0, num_training_steps=50
    )
    ours = LearningRate(3e-4, kind, 50, 7 if kind != "constant" else 0)  # type: ignore[arg-type]
    for step in range(50):
        assert ours.at(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        theirs.step()


def test_wsd_warms_up_stays_and_decays_to_its_floor() -> None:
    rate = LearningRate(1.0, "wsd", 100, 10, min_ratio=0.1, decay_ratio=0.2)
    assert [rate.at(step) for step in (0, 5, 10, 50, 80)] == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert rate.at(90) == pytest.approx(0.55)
    assert rate.at(100) == pytest.approx(0.1)


def test_a_cosine_ends_at_its_floor() -> None:
    assert LearningRate(2.0, "cosine", 10, 0, min_ratio=0.25).at(10) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("steps", "ratio", "kind", "expected"),
    [(5, None, "cosine", 5), (None, 0.1, "cosine", 100), (None, None, "cosine", 30), (None, None, "constant", 0)],
)
def test_warmup_as_said_or_by_axolotls_default(
    steps: int | None, ratio: float | None, kind: str, expected: int
) -> None:
    assert warmup_steps(1000, steps, ratio, kind) == expected
