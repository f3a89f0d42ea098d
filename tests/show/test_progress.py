from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dtrain.launch.observe import Snapshot
from dtrain.show.chart import loss_chart
from dtrain.show.progress import LineScreen, LiveScreen, screen_for

POINTS = st.lists(st.tuples(st.integers(1, 10**6), st.floats(allow_nan=True, allow_infinity=True)), max_size=50)


@given(POINTS, POINTS, st.integers(2, 100), st.integers(2, 20))
def test_any_curve_makes_a_chart_of_its_size_or_none(train: Any, held_out: Any, width: int, height: int) -> None:
    lines = loss_chart(sorted(train), sorted(held_out), width, height)
    assert lines == [] or len(lines) == height + 3
    assert all(len(line) <= max(10 + width, 60) for line in lines)


def test_a_falling_curve_falls() -> None:
    lines = loss_chart([(1, 4.0), (50, 3.0), (100, 2.0)], [(50, 3.0), (100, 2.0)], width=11, height=3)
    assert lines == [
        "   4.000 │·",
        "         │     ●",
        "   2.000 │          ●",
        "         └───────────",
        "          step 1  100",
        "          · train loss   ● held-out loss",
    ]


def test_a_flat_curve_and_too_little_to_draw() -> None:
    assert "·" in loss_chart([(1, 2.0), (9, 2.0)], [])[4]
    assert loss_chart([], []) == []
    assert loss_chart([(3, 1.0)], []) == []
    assert loss_chart([(1, float("nan")), (2, float("inf"))], []) == []


def at_step(step: int, *words: str, stage: str = "training") -> Snapshot:
    told = {"step_seconds": 2.0, "tokens_per_second": 1234.5}
    lines = tuple({"step": n, "loss": 5.0 / n, **told} for n in range(1, step + 1))
    return Snapshot(stage, step, 10, lines, words)


def test_lines_for_a_pipe() -> None:
    out = io.StringIO()
    console = Console(file=out, width=60)
    with screen_for(console, "story") as screen:
        assert isinstance(screen, LineScreen)
        screen.update(at_step(0, stage="preparing data"))
        screen.update(at_step(3, "dropped 2 rows [of] many"))
        screen.update(at_step(4))
        screen.update(at_step(4, stage="saving"))
        screen.update(at_step(10))
        screen.update(at_step(10, stage="done"))
    said = out.getvalue()
    assert said.splitlines()[:6] == [
        "story: preparing data",
        "dropped 2 rows [of] many",
        "story: training",
        "step 3/10  loss 1.667  1,234 tokens/s  14 s left",
        "step 10/10  loss 0.500  1,234 tokens/s",
        "story: done",
    ]
    assert "· train loss" in said
    assert "\x1b" not in said


def test_a_dumb_terminal_and_an_ascii_one() -> None:
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(screen_for(dumb, "story"), LineScreen)
    raw = io.BytesIO()
    ascii_out = io.TextIOWrapper(raw, encoding="ascii")
    with screen_for(Console(file=ascii_out, width=60), "story") as screen:
        screen.update(at_step(10))
    ascii_out.flush()
    assert b". train loss" in raw.getvalue()


def test_the_live_screen_draws_in_place() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    with screen_for(console, "story") as screen:
        assert isinstance(screen, LiveScreen)
        screen.update(at_step(2, "a warning"))
        screen.update(at_step(5))
        screen.say("asked to stop")
    said = out.getvalue()
    assert "\x1b[" in said
    for words in ("a warning", "step 5/10", "loss 1.000", "10 s left", "asked to stop"):
        assert words in said


@pytest.mark.parametrize("width", [20, 40, 200])
def test_any_width_is_drawn(width: int) -> None:
    out = io.StringIO()
    with LiveScreen(Console(file=out, force_terminal=True, width=width), "a long name of a run") as screen:
        screen.update(at_step(9))
    assert "9/10" in out.getvalue()
