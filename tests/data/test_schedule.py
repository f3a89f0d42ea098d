from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.data.schedule import MicroBatch, Schedule, Slot, Step, eval_batches, make_schedule, permutation

WINDOW = 32
rows = st.lists(st.integers(2, WINDOW), min_size=1, max_size=60)
arrangements = st.sampled_from([(1, 1, 8), (1, 2, 4), (1, 8, 1), (2, 1, 4), (2, 4, 1), (4, 1, 2), (4, 2, 1), (8, 1, 1)])


def scheduled(lengths: list[int], **changes: Any) -> Schedule:
    options: dict[str, Any] = {
        "window": WINDOW, "packing": False, "shuffle": True, "seed": 7, "world": 2, "micro_batch_size": 2,
        "accumulation": 2, "epochs": 1, "max_steps": None, **changes,
    }  # fmt: skip
    return make_schedule(lengths, [length - 1 for length in lengths], **options)


def slots_of(step: Step) -> list[Slot]:
    return [slot for ranks in step.micro for rank in ranks for slot in rank]


def rows_of(steps: list[Step]) -> list[int]:
    return [row for step in steps for slot in slots_of(step) for row in slot]


@given(rows, st.booleans(), st.booleans(), arrangements)
def test_each_row_once_an_epoch_in_slots_within_the_window(
    lengths: list[int], packing: bool, shuffle: bool, arrangement: tuple[int, int, int]
) -> None:
    world, micro, accumulation = arrangement
    schedule = scheduled(
        lengths,
        packing=packing,
        shuffle=shuffle,
        world=world,
        micro_batch_size=micro,
        accumulation=accumulation,
        epochs=2,
    )
    steps = list(schedule)
    assert len(steps) == schedule.steps == 2 * schedule.steps_per_epoch
    for epoch in (steps[: schedule.steps_per_epoch], steps[schedule.steps_per_epoch :]):
        assert sorted(rows_of(epoch)) == list(range(len(lengths)))
    for step in steps:
        assert all(sum(lengths[row] for row in slot) <= WINDOW for slot in slots_of(step))
        assert step.tokens == sum(lengths[row] for row in rows_of([step]))
        assert step.trained_tokens == sum(lengths[row] - 1 for row in rows_of([step]))
        assert 1 <= len(step.micro) <= accumulation
        for ranks in step.micro:
            assert len(ranks) == world
            assert any(ranks)
            assert max(len(rank) for rank in ranks) <= micro
            assert max(len(rank) for rank in ranks) - min(len(rank) for rank in ranks) <= 1
    assert schedule.tokens == sum(step.tokens for step in steps)


@given(rows, st.booleans(), st.booleans(), arrangements, arrangements)
def test_a_step_has_the_same_slots_however_it_is_shared_out(
    lengths: list[int], packing: bool, shuffle: bool, one: tuple[int, int, int], other: tuple[int, int, int]
) -> None:
    first, second = (
        scheduled(lengths, packing=packing, shuffle=shuffle, world=w, micro_batch_size=m, accumulation=a, epochs=1.5)
        for w, m, a in (one, other)
    )
    assert first.steps == second.steps
    for a, b in zip(first, second, strict=True):
        assert Counter(slots_of(a)) == Counter(slots_of(b))
        assert (a.epoch, a.tokens, a.trained_tokens) == (b.epoch, b.tokens, b.trained_tokens)


@given(rows, st.booleans(), st.booleans(), st.integers(0, 10_000))
def test_any_step_can_be_entered_without_those_before_it(
    lengths: list[int], packing: bool, shuffle: bool, place: int
) -> None:
    steps = list(scheduled(lengths, packing=packing, shuffle=shuffle, epochs=3))
    fresh = scheduled(lengths, packing=packing, shuffle=shuffle, epochs=3)
    assert fresh.step(place % len(steps)) == steps[place % len(steps)]


@given(rows, st.booleans(), arrangements)
@settings(max_examples=50)
def test_longest_is_the_heaviest_micro_batch_of_the_whole_run(
    lengths: list[int], packing: bool, arrangement: tuple[int, int, int]
) -> None:
    world, micro, accumulation = arrangement
    for shuffle in (True, False):
        schedule = scheduled(
            lengths, packing=packing, shuffle=shuffle, world=world, micro_batch_size=micro, accumulation=accumulation,
            epochs=2.3,
        )  # fmt: skip
        for rank in range(world):
            asked = [tokens(ranks[rank], lengths) for step in schedule for ranks in step.micro]
            assert tokens(schedule.longest(rank), lengths) == max(asked)


def tokens(slots: tuple[Slot, ...], lengths: list[int]) -> int:
    return sum(lengths[row] for slot in slots for row in slot)


def test_without_shuffle_rows_come_in_file_order_packed_or_not() -> None:
    lengths = [20, 10, 5, 30, 2, 2, 31, 9, 9, 9, 9]
    unpacked = scheduled(lengths, shuffle=False, epochs=2)
    assert rows_of(list(unpacked)) == [*range(11), *range(11)]
    packed = scheduled(lengths, shuffle=False, packing=True)
    assert [slot for step in packed for slot in slots_of(step)] == [(0, 1), (2,), (3, 4), (5,), (6,), (7, 8, 9), (10,)]


@pytest.mark.parametrize("packing", [True, False])
def test_epochs_differ_and_the_seed_decides(packing: bool) -> None:
    lengths = np.random.default_rng(1).integers(2, WINDOW, 100).tolist()
    schedule = scheduled(lengths, packing=packing, epochs=2)
    first, second = (
        rows_of(list(schedule)[: schedule.steps_per_epoch]),
        rows_of(list(schedule)[schedule.steps_per_epoch :]),
    )
    assert first != second
    assert first == rows_of(list(scheduled(lengths, packing=packing)))
    assert first != rows_of(list(scheduled(lengths, packing=packing, seed=8)))


def test_ranks_carry_about_equal_tokens() -> None:
    lengths = np.random.default_rng(2).integers(2, WINDOW, 4096).tolist()
    schedule = scheduled(lengths, world=4, micro_batch_size=4, accumulation=4)
    loads = [[tokens(rank, lengths) for rank in ranks] for step in schedule for ranks in step.micro]
    waiting = 1 - sum(sum(ranks) / len(ranks) for ranks in loads) / sum(max(ranks) for ranks in loads)
    assert waiting < 0.02  # unsorted slots wait 22 % of the time


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"),
    [(1, None, 13), (0.5, None, 7), (2.25, None, 30), (3, 20, 20), (1, 50, 50), (0.01, None, 1)]
)  # fmt: skip
def test_steps_are_known_up_front(epochs: float, max_steps: int | None, steps: int) -> None:
    schedule = scheduled([10] * 100, epochs=epochs, max_steps=max_steps)
    assert schedule.steps == steps == len(list(schedule))
    with pytest.raises(IndexError):
        schedule.step(steps)


def test_progress_is_told_in_epochs() -> None:
    assert [step.epoch for step in scheduled([10] * 32, epochs=1.5)] == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5]


@given(rows, st.booleans(), st.integers(1, 4), st.integers(1, 3))
def test_evaluation_takes_every_row_once_in_order(lengths: list[int], packing: bool, world: int, micro: int) -> None:
    batches: tuple[MicroBatch, ...] = eval_batches(lengths, world, micro, WINDOW, packing)
    seen = [row for ranks in batches for rank in ranks for slot in rank for row in slot]
    assert seen == list(range(len(lengths)))
    assert all(len(ranks) == world and max(map(len, ranks)) <= micro for ranks in batches)


def test_the_permutation_is_the_same_on_every_machine() -> None:
    # Written down once: a change here would change the batches of runs that are resumed.
    assert permutation(42, 0, 0, 8).tolist() == [4, 1, 3, 6, 0, 7, 2, 5]
    assert sorted(permutation(-1, 3, 1, 100).tolist()) == list(range(100))
