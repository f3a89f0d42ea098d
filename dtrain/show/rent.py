"""The market for a config as one table: cheapest first, the Pareto front marked."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dtrain.planner.rent import Option, Rent
from dtrain.show.console import Screen
from dtrain.units import dollars, duration

MOST_ROWS = 14
"""Rows that one screen holds; all of the front are shown, and `--json` has the rest."""


def print_rent(told: Rent, console: Console | None = None) -> None:
    """The table, what was left out and why, and how far the figures can be trusted."""
    console = console or Screen(highlight=False)
    shown = chosen_rows(told.options)
    if shown:
        console.print(table_of(told, shown))
        console.print(Text("◆ nothing is both faster and cheaper · time and $ run from the order to the end", "dim"))
        console.print(
            Text(
                "free ends without notice, a notebook within a day, spot can be taken away, marketplace is strangers'",
                "dim",
            )
        )
        console.print(Text(f"prices, with the day they were read: {_sources(shown)}", "dim"))
    hidden = len(told.options) - len(shown)
    if hidden:
        console.print(Text(f"{hidden} more in --json", "dim"))
    if told.unable:
        console.print(Text(f"cannot run it: {_unable(told)}", "dim"))
    for warning in told.warnings:
        console.print(Text("note: ", "bold yellow") + Text(warning))


def chosen_rows(options: Sequence[Option], most: int = MOST_ROWS) -> list[Option]:
    """The front, then the cheapest within the limits, then others; in the table's order."""
    best = sorted(options, key=lambda one: (not one.on_front, not one.within_limits))
    kept = {id(option) for option in best[:most]}
    return [option for option in options if id(option) in kept or option.on_front]


def table_of(told: Rent, rows: Sequence[Option]) -> Table:
    title = f"{told.model}: where it can run, cheapest first"
    table = Table(box=None, padding=(0, 1), title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("profile", no_wrap=True)
    table.add_column("from")
    for name in ("$/h", "time", "$"):
        table.add_column(name, justify="right", no_wrap=True)
    for option in rows:
        table.add_row(*_cells(option), style=_style(option))
    return table


def _style(option: Option) -> str:
    return "" if option.within_limits else "dim"


def _cells(option: Option) -> list[str | Text]:
    offer = option.offer
    kind = "" if offer.kind == "on-demand" else f" ({offer.kind})"
    place = Text(f"{offer.provider}: {offer.machine}{kind}", "bold" if option.on_front else "")
    place.append(f"\n{_chosen(option)} · {offer.priced_on}", "not bold dim")
    return [
        "◆" if option.on_front else "" if option.within_limits else "✗",
        option.plan.profile.name,
        place,
        f"{offer.usd_per_hour:,.2f}",
        duration(option.hours * 3600),
        dollars(option.usd),
    ]


def _chosen(option: Option) -> str:
    choice = option.plan.choice
    words = [f"ZeRO {choice.zero_stage}", f"micro-batch {choice.micro_batch_size}"]
    if choice.offload_optimizer != "none":
        words.append("offload")
    if choice.gradient_checkpointing != "none":
        words.append(f"ckpt {choice.gradient_checkpointing}")
    return ", ".join(words)


def _sources(rows: Sequence[Option]) -> str:
    named = {f"{option.offer.provider}: {option.offer.source}" for option in rows}
    return "; ".join(sorted(named))


def _unable(told: Rent) -> str:
    first = told.unable[:3]
    words = "; ".join(f"{one.profile} ({one.reason})" for one in first)
    rest = len(told.unable) - len(first)
    return words + (f"; and {rest} more" if rest else "")
