"""A run beside its plan, for people: figures, errors, and why something was not compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dtrain.units import duration, memory

ROWS = (("peak memory, allocated", "peak_allocated_gib", "peak_allocated"), ("a step", "step_seconds", "step_seconds"))
"""Words, the figure, its error."""


def print_comparison(row: Mapping[str, Any], console: Console) -> None:
    place, model = row["profile"], row["model"]
    console.print(Text(f"{model['name']} on {place['name']}, run {row['run']}", "bold"))
    table = Table("", "planned", "measured", "error", box=None, padding=(0, 1))
    for column in table.columns[1:]:
        column.justify = "right"
    for words, key, error in ROWS:
        told = row["planned"][key], row["measured"][key]
        off = row["errors"][error]
        table.add_row(words, *(_figure(key, value) for value in told), "" if off is None else f"{off:+.1%}")
    console.print(table)
    for note in row["notes"]:
        console.print(Text("note: ", "bold yellow") + Text(note))
    console.print(Text("--json prints the row that can be sent to us: no path, no data, no host is in it", "dim"))


def _figure(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return memory(value) if key.endswith("_gib") else duration(value)
