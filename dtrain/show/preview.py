"""Rows in colour, lengths as bars, tokens as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dtrain.show.console import console_for
from dtrain.units import count

if TYPE_CHECKING:
    from dtrain.data.count import TokenCount
    from dtrain.data.look import Lengths, SeenRow
    from dtrain.data.prepare import Prepared

BAR_WIDTH = 40


def progress(line: str) -> None:
    """Words of the work go to stderr: stdout is for the rows."""
    console_for(as_json=True).print(line, style="dim", markup=False, soft_wrap=True)


def preview_json(prepared: Prepared, rows: Sequence[SeenRow]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "report": prepared.report.as_json(),
        "rows": [
            {**asdict(row), "stretches": [stretch._asdict() for stretch in row.stretches]} for row in rows
        ],
    }  # fmt: skip


def print_preview(prepared: Prepared, rows: Sequence[SeenRow]) -> None:
    console = console_for(as_json=False)
    marked = not console.is_terminal or console.no_color
    for row in rows:
        console.print(Text(f"row {row.row + 1} · {row.tokens:,} tokens, {row.trained_tokens:,} trained", style="bold"))
        console.print(_painted(row, marked), soft_wrap=True)
        console.print()
    how = "between ⟦ and ⟧" if marked else "in green"
    console.print(f"Trained text stands {how}; everything else is only read.", style="dim")


def _painted(row: SeenRow, marked: bool) -> Text:
    text = Text()
    for trained, words in row.stretches:
        if marked:
            text.append(f"⟦{words}⟧" if trained else words)
        else:
            text.append(words, style="bold green" if trained else "dim")
    return text


def print_lengths(lengths: Lengths, sequence_len: int) -> None:
    console = console_for(as_json=False)
    console.print(
        f"{lengths.rows:,} rows, {count(lengths.tokens)} tokens; "
        f"shortest {lengths.shortest:,}, median {lengths.median:,}, longest {lengths.longest:,}"
    )
    _print_histogram(console, lengths)
    console.print()
    console.print(_windows_table(lengths))
    [over] = [cut.rows_over for cut in lengths.windows if cut.window == sequence_len]
    console.print(
        f"sequence_len is {sequence_len:,}, which {over:,} rows exceed; "
        f"{lengths.window_for_99_percent:,} keeps 99 % of the rows whole."
    )


def _print_histogram(console: Console, lengths: Lengths) -> None:
    most = max(rows for _, _, rows in lengths.histogram)
    for first, last, rows in lengths.histogram:
        bar = "█" * max(round(rows / most * BAR_WIDTH), 1 if rows else 0)
        console.print(f"{first:>9,} to {last:>9,}  {rows:>9,}  {bar}")


def _windows_table(lengths: Lengths) -> Table:
    table = Table("window", "rows over it", "share", "tokens lost: drop", "tokens lost: truncate", box=None)
    for column in table.columns:
        column.justify = "right"
    for cut in lengths.windows:
        table.add_row(
            f"{cut.window:,}", f"{cut.rows_over:,}", f"{cut.rows_over_share:.1%}",
            f"{cut.tokens_dropped / lengths.tokens:.1%}", f"{cut.tokens_cut / lengths.tokens:.1%}",
        )  # fmt: skip
    return table


def print_token_counts(counts: Sequence[TokenCount]) -> None:
    table = Table("tokenizer", "vocabulary", "tokens", "characters per token", box=None)
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "right"
    for one in counts:
        table.add_row(one.tokenizer, f"{one.vocabulary:,}", f"{one.tokens:,}", f"{one.characters_per_token:.2f}")
    console_for(as_json=False).print(table)
