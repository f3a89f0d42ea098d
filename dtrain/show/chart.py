"""A loss curve out of characters, for any terminal."""

from __future__ import annotations

from collections.abc import Sequence

Curve = Sequence[tuple[int, float]]
"""(step, value) in order of steps."""

TRAIN, HELD_OUT = "·", "●"
PLAIN = str.maketrans({TRAIN: ".", HELD_OUT: "o", "│": "|", "└": "+", "─": "-"})
"""For an output that is not UTF-8."""


def loss_chart(train: Curve, held_out: Curve, width: int = 60, height: int = 8) -> list[str]:
    """Lines of a chart, `width` cells of curve and an axis; empty with fewer than two points."""
    values = [value for _, value in (*train, *held_out) if _drawable(value)]
    steps = [step for step, value in (*train, *held_out) if _drawable(value)]
    if len(values) < 2 or min(steps) == max(steps):
        return []
    low, high = min(values), max(values)
    cells = [[" "] * width for _ in range(height)]
    for curve, mark in ((train, TRAIN), (held_out, HELD_OUT)):
        for column, value in _columns(curve, min(steps), max(steps), width).items():
            cells[_row(value, low, high, height)][column] = mark
    return _with_axes(cells, low, high, min(steps), max(steps), bool(held_out))


def _drawable(value: float) -> bool:
    """A number; not a NaN, nor what a diverged run logs."""
    return abs(value) < 1e30


def _columns(curve: Curve, first: int, last: int, width: int) -> dict[int, float]:
    """Column → mean of the values that fall into it."""
    found: dict[int, list[float]] = {}
    for step, value in curve:
        if _drawable(value):
            found.setdefault(round((step - first) * (width - 1) / (last - first)), []).append(value)
    return {column: sum(values) / len(values) for column, values in found.items()}


def _row(value: float, low: float, high: float, height: int) -> int:
    """0 is the top line."""
    share = (value - low) / (high - low) if high > low else 0.5
    return round((1 - share) * (height - 1))


def _label(value: float) -> str:
    """Eight characters."""
    if abs(value) < 1000:
        return f"{value:8.3f}"
    return f"{value:8.1f}" if abs(value) < 100_000 else f"{value:8.1g}"


def _with_axes(cells: list[list[str]], low: float, high: float, first: int, last: int, two: bool) -> list[str]:
    labels = [_label(high), *[" " * 8] * (len(cells) - 2), _label(low)]
    lines = [f"{label} │{''.join(row).rstrip()}" for label, row in zip(labels, cells, strict=True)]
    width = len(cells[0])
    ends = f"step {first}", str(last)
    axis = " " * 9 + "└" + "─" * width
    legend = f"{TRAIN} train loss" + (f"   {HELD_OUT} held-out loss" if two else "")
    return [*lines, axis, " " * 10 + ends[0] + ends[1].rjust(width - len(ends[0])), " " * 10 + legend]
