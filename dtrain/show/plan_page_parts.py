"""Pieces of HTML and SVG that the plan's page is made of. All text that comes from outside is escaped here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from dtrain.show.plan_page_style import PALETTE


def colour(number: int) -> str:
    return f"var(--part-{number % len(PALETTE)})"


def section(heading: str, *inside: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{''.join(inside)}</section>"


def tile(label: str, figure: str, words: str) -> str:
    return f'<div class="tile"><span>{escape(label)}</span><b>{escape(figure)}</b><span>{escape(words)}</span></div>'


def soft(words: str) -> str:
    return f'<p class="soft">{escape(words)}</p>'


# --- bars ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart: parts side by side."""

    name: str
    parts: Mapping[str, float]
    amount: str
    """What stands at its end."""
    is_peak: bool = False
    between: tuple[float, float] | None = None
    """An interval drawn over it."""


def bars(rows: Sequence[Bar], order: Sequence[str], scale: float, edge: float | None = None) -> str:
    """Stacked bars on one scale; `order` gives each part its colour, `edge` is a mark across all of them."""
    return f'<div class="rows">{"".join(_bar(row, order, scale, edge) for row in rows)}</div>'


def _bar(row: Bar, order: Sequence[str], scale: float, edge: float | None) -> str:
    strong = " peak" if row.is_peak else ""
    pieces = "".join(
        f'<i style="width:{_percent(row.parts[name], scale)};background:{colour(number)}" title="{escape(name)}"></i>'
        for number, name in enumerate(order)
        if row.parts.get(name, 0.0) > 0
    )
    if row.between is not None:
        low, high = row.between
        pieces += f'<i class="between" style="left:{_percent(low, scale)};width:{_percent(high - low, scale)}"></i>'
    used = sum(row.parts.values())
    if edge is not None and used > edge:
        pieces += f'<i class="over" style="left:{_percent(edge, scale)};width:{_percent(used - edge, scale)}"></i>'
    if edge is not None:
        pieces += f'<i class="edge" style="left:calc({_percent(edge, scale)} - 2px)"></i>'
    label = escape(f"{row.name}: {row.amount}", quote=True)
    return (
        f'<span class="name{strong}">{escape(row.name)}</span><span class="amount{strong}">{escape(row.amount)}</span>'
        f'<div class="bar" role="img" aria-label="{label}">{pieces}</div>'
    )


def _percent(value: float, scale: float) -> str:
    return f"{100 * value / scale:.3f}%" if scale > 0 else "0%"


def legend(parts: Sequence[tuple[int, str]]) -> str:
    """(number of its colour, words) of each part."""
    items = "".join(f'<li><i style="background:{colour(number)}"></i>{escape(words)}</li>' for number, words in parts)
    return f'<ul class="legend">{items}</ul>'


# --- tables -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    cells: Sequence[str]
    """HTML: what comes from outside must be escaped already."""
    is_front: bool = False


def table(headings: Sequence[str], rows: Sequence[Row], numbers: Sequence[int] = ()) -> str:
    """`numbers`: which columns are set to the right."""
    head = "".join(f"<th{_class(at in numbers)}>{escape(words)}</th>" for at, words in enumerate(headings))
    body = "".join(_row(row, numbers) for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(row: Row, numbers: Sequence[int]) -> str:
    cells = "".join(f"<td{_class(at in numbers)}>{cell}</td>" for at, cell in enumerate(row.cells))
    return f'<tr class="front">{cells}</tr>' if row.is_front else f"<tr>{cells}</tr>"


def _class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


# --- hours against dollars ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spot:
    """A machine in the plane of hours and dollars."""

    hours: float
    usd: float
    name: str
    on_front: bool


WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 26, 38
LABEL_PIXELS = 70
"""Names on the front nearer to one another than this are left out: the table has them."""


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float, below: float = 0.08) -> Scale:
        """`below`: room under the smallest value, in powers of ten."""
        return cls(math.log10(min(values)) - below, math.log10(max(values)) + 0.08, start, end)

    def at(self, value: float) -> float:
        return self.start + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """1, 2 and 5 of each power of ten inside; only powers where that would be many."""
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        steps = (1, 2, 5) if self.high - self.low < 2.2 else (1,)
        found = [step * 10.0**power for power in powers for step in steps]
        return [value for value in found if self.low <= math.log10(value) <= self.high]


def market(spots: Sequence[Spot]) -> str:
    """Every paid machine as a dot, dearer upwards, slower to the right; the front as a line with names."""
    paid = [spot for spot in spots if spot.usd > 0 and spot.hours > 0]
    if len(paid) < 2:
        return ""
    across = Scale.of([spot.hours for spot in paid], LEFT, WIDTH - RIGHT)
    up = Scale.of([spot.usd for spot in paid], HEIGHT - BOTTOM, TOP, below=0.35)
    dots = "".join(_dot(spot, across, up) for spot in sorted(paid, key=lambda one: one.on_front))
    front = sorted((spot for spot in paid if spot.on_front), key=lambda one: one.hours)
    line = " ".join(f"{across.at(spot.hours):.1f},{up.at(spot.usd):.1f}" for spot in front)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="hours and dollars of every machine">'
        f'{_axes(across, up)}<polyline class="way-down" points="{line}"/>{dots}{_names(front, across, up)}</svg>'
    )


def _dot(spot: Spot, across: Scale, up: Scale) -> str:
    kind, radius = ("best", 5) if spot.on_front else ("other", 4)
    words = escape(f"{spot.name}: {spot.hours:.2f} h, ${spot.usd:,.2f}")
    x, y = across.at(spot.hours), up.at(spot.usd)
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{words}</title></circle>'


def _names(front: Sequence[Spot], across: Scale, up: Scale) -> str:
    told, last = "", -math.inf
    for spot in front:
        x, y = across.at(spot.hours), up.at(spot.usd)
        if x - last >= LABEL_PIXELS:
            anchor = "end" if x > WIDTH - RIGHT - LABEL_PIXELS else "start"
            place = f'x="{x:.1f}" y="{y + 18:.1f}" text-anchor="{anchor}"'
            told, last = told + f'<text class="name" {place}>{escape(spot.name)}</text>', x
    return told


def _axes(across: Scale, up: Scale) -> str:
    floor = HEIGHT - BOTTOM
    lines = "".join(
        f'<line class="axis" x1="{across.at(value):.1f}" x2="{across.at(value):.1f}" y1="{TOP}" y2="{floor}"/>'
        f'<text x="{across.at(value):.1f}" y="{floor + 17}" text-anchor="middle">{value:g} h</text>'
        for value in across.ticks()
    )
    lines += "".join(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up.at(value):.1f}" y2="{up.at(value):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{up.at(value) + 4:.1f}" text-anchor="end">${value:,g}</text>'
        for value in up.ticks()
    )
    return lines
