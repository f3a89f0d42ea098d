"""The price table on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dtrain.hardware.prices import Price, own_prices
from dtrain.show.console import Screen


def print_prices(rows: Sequence[Price], console: Console | None = None) -> None:
    """Card by card, the cheapest first; what was asked for from here is marked."""
    console = console or Screen(highlight=False)
    own = set(own_prices())
    table = Table(box=None, padding=(0, 1))
    for name in ("", "gpu", "from"):
        table.add_column(name, no_wrap=name != "from")
    table.add_column("$/h", justify="right", no_wrap=True)
    table.add_column("read", no_wrap=True)
    table.add_column("source", style="dim")
    for row in rows:
        price = f"{row.usd_per_hour:,.2f}"
        table.add_row("●" if row in own else "", _cards(row), _place(row), price, row.priced_on, row.source)
    console.print(table)
    words = "● asked for from here; " if own else ""
    console.print(Text(f"{words}dtrain prices refresh asks the providers whose credentials are here", "dim"))


def _cards(row: Price) -> str:
    return f"{row.gpu} × {row.gpus}" + (f" to {row.up_to}" if row.up_to > 1 else "")


def _place(row: Price) -> str:
    return f"{row.provider}: {row.machine}" + ("" if row.kind == "on-demand" else f" ({row.kind})")


def prices_json(rows: Sequence[Price]) -> dict[str, Any]:
    own = set(own_prices())
    return {"schema_version": 1, "prices": [{**asdict(row), "asked_from_here": row in own} for row in rows]}
