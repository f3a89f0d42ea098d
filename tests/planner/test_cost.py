"""Hours of a whole run: evaluations, checkpoints and bytes counted by hand, and what a rented machine adds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dtrain.config.load import loads
from dtrain.config.schema import Config
from dtrain.planner.cost import (
    EXPORTED_BYTES,
    RunCounts,
    checkpoint_bytes,
    checkpoint_seconds,
    estimate_run,
    evaluation_count,
    evaluation_seconds,
    preparation_seconds,
    save_count,
    start_seconds,
)
from dtrain.planner.throughput import estimate_time
from tests.planner.layouts import layout

COUNTS = RunCounts(steps=100, steps_per_epoch=25, eval_rows=800, mean_tokens=4096)


def config(*lines: str) -> Config:
    told = ["base_model: meta-llama/Llama-3.1-8B", "datasets: [{path: x, type: completion}]", *lines]
    return loads("\n".join(told)).config


def test_evaluations_are_counted_in_steps_or_per_epoch() -> None:
    assert evaluation_count(config("eval_steps: 10"), COUNTS) == 10
    assert evaluation_count(config("evals_per_epoch: 2"), COUNTS) == 8  # every 13 of 100 steps, and the last
    assert evaluation_count(config(), COUNTS) == 1
    assert evaluation_count(config("eval_steps: 10"), replace(COUNTS, eval_rows=0)) == 0


def test_checkpoints_are_counted_the_same_way() -> None:
    assert save_count(config("save_steps: 40"), COUNTS) == 3
    assert save_count(config("saves_per_epoch: 1"), COUNTS) == 4
    assert save_count(config(), COUNTS) == 1


def test_a_checkpoint_holds_weights_masters_and_moments() -> None:
    assert checkpoint_bytes(layout()) == 8_030_261_248 * (2 + 4 + 8)
    assert checkpoint_seconds(layout(profile="h100x8x4", sharding="zero3")) == pytest.approx(
        checkpoint_seconds(layout()) / 4
    )


def test_an_evaluation_is_a_third_of_training_or_less() -> None:
    setup = layout(accumulation=1)
    rows = setup.micro_batch_size * setup.data_parallel_size
    once = evaluation_seconds(setup, replace(COUNTS, eval_rows=rows))
    assert 0.2 * estimate_time(setup).step_seconds < once < 0.4 * estimate_time(setup).step_seconds
    assert evaluation_seconds(setup, replace(COUNTS, eval_rows=rows + 1)) == pytest.approx(2 * once)


def test_the_parts_of_a_run_add_up() -> None:
    setup = layout()
    told = estimate_run(config("eval_steps: 50", "save_steps: 50"), setup, COUNTS, mean_step_seconds=9.0)
    parts = told.start_seconds + told.train_seconds + told.evaluation_seconds + told.checkpoint_seconds
    assert told.train_seconds == 900
    assert told.hours == pytest.approx(parts / 3600)
    assert told.billed_hours == pytest.approx(told.hours + preparation_seconds(setup) / 3600)
    assert told.evaluation_seconds == pytest.approx(2 * evaluation_seconds(setup, COUNTS))


def test_starting_reads_the_weights_and_compiles_where_asked() -> None:
    assert start_seconds(layout()) > start_seconds(layout("Qwen/Qwen2.5-0.5B"))
    assert start_seconds(layout(compiled=True)) > start_seconds(layout())


def test_a_large_machine_is_billed_longer_before_it_trains() -> None:
    one, eight = preparation_seconds(layout(profile="h100x1")), preparation_seconds(layout())
    assert 300 < one < eight < 1200
    assert EXPORTED_BYTES * layout().facts.parameters / 200e6 < one
