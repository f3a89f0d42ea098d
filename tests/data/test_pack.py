from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.data.pack import Packing, best_fit, next_fit

WINDOW = 64
lengths_of_rows = st.lists(st.integers(1, WINDOW), min_size=0, max_size=200)


def slots(packing: Packing) -> list[list[int]]:
    return [packing.lengths[a:b].tolist() for a, b in pairwise(packing.starts)]


@given(lengths_of_rows)
def test_best_fit_places_each_length_once_within_the_window(lengths: list[int]) -> None:
    packed = slots(best_fit(lengths, WINDOW))
    assert sorted(length for slot in packed for length in slot) == sorted(lengths)
    assert all(0 < sum(slot) <= WINDOW for slot in packed)


@given(lengths_of_rows)
def test_best_fit_is_what_placing_one_row_after_another_gives(lengths: list[int]) -> None:
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces.remove(min(fitting))
        spaces.append((min(fitting) if fitting else WINDOW) - length)
    assert sorted(WINDOW - sum(slot) for slot in slots(best_fit(lengths, WINDOW))) == sorted(spaces)


@given(lengths_of_rows)
def test_next_fit_keeps_the_order_and_opens_a_slot_only_when_it_must(lengths: list[int]) -> None:
    packed = slots(next_fit(lengths, WINDOW))
    assert [length for slot in packed for length in slot] == lengths
    assert all(sum(slot) <= WINDOW for slot in packed)
    assert all(sum(slot) + after[0] > WINDOW for slot, after in pairwise(packed))


@pytest.mark.parametrize("window", [2048, 4096, 32768])
def test_a_million_log_normal_lengths_leave_less_than_a_thousandth_empty(window: int) -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(6, 1, 1_000_000).astype(np.int64), 1, window)
    packing = best_fit(lengths, window)
    sums = np.add.reduceat(packing.lengths, packing.starts[:-1])
    assert int(sums.max()) <= window
    assert np.array_equal(np.sort(packing.lengths), np.sort(lengths))
    assert lengths.sum() / (len(sums) * window) >= 0.999


def test_a_row_longer_than_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.\.64.*65"):
        best_fit([3, 65], WINDOW)
