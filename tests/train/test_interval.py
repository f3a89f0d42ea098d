"""When to save."""

from __future__ import annotations

import math

import pytest

from dtrain.train.interval import SaveClock, best_interval, hours_between_failures


def lost_share(interval: float, save: float, failures: float) -> float:
    """Daly's own cost: wall time over useful time, with exponential failures and no time to restart."""
    return failures / interval * math.exp(0.0) * (math.exp((interval + save) / failures) - 1)


@pytest.mark.parametrize(("save", "failures"), [(5.0, 3600.0), (0.2, 3600.0), (60.0, 6000.0), (600.0, 3600.0)])
def test_no_other_interval_loses_less(save: float, failures: float) -> None:
    best = best_interval(save, failures)
    least = lost_share(best, save, failures)
    around = [lost_share(best * factor, save, failures) for factor in (0.5, 0.8, 1.25, 2.0)]
    assert least < min(around)
    assert best == pytest.approx(math.sqrt(2 * save * failures), rel=0.35)  # Young's first order


def test_a_save_that_takes_longer_than_a_life() -> None:
    assert best_interval(100.0, 10.0) == 10.0


def test_llama_3_lost_a_run_every_three_hours() -> None:
    assert hours_between_failures(16_384) == pytest.approx(3.1, abs=0.05)


def test_the_clock() -> None:
    now = [1000.0]
    clock = SaveClock(hours_between_failures=2.0, now=lambda: now[0])
    assert clock.due()
    clock.saved(1.0)
    assert not clock.due()
    now[0] += best_interval(1.0, 7200.0) + 0.1
    assert clock.due()
    clock.saved(0.0, writing_seconds=300.0)  # a copy that costs nothing, a disk that is slow
    now[0] += 599
    assert not clock.due()
    now[0] += 2
    assert clock.due()
