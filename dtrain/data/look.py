"""Looking at data before a run: rows as the model will see them, and how long rows are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dtrain.config.schema import Config
from dtrain.data.encode import encode_part, make_format, open_inputs
from dtrain.data.pack import IntArray
from dtrain.data.prepare import Prepared, tokenizer_for
from dtrain.data.report import window_for
from dtrain.data.rows import NOT_TRAINED, TokenRows
from dtrain.data.tokenizer import Encoder, load_tokenizer

NO_WINDOW = 2**31 - 1


class Stretch(NamedTuple):
    """Neighbouring tokens that are all trained, or all not, as text with special tokens written out."""

    trained: bool
    text: str


@dataclass(frozen=True)
class SeenRow:
    row: int
    """In the split, from 0."""
    tokens: int
    trained_tokens: int
    stretches: tuple[Stretch, ...]


def see_rows(prepared: Prepared, rows: int) -> list[SeenRow]:
    """The first `rows` rows of the training split."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_folder)
    return [see_row(prepared.train, row, tokenizer) for row in range(min(rows, len(prepared.train)))]


def see_row(rows: TokenRows, row: int, tokenizer: Any) -> SeenRow:
    ids, trained = rows.ids(row), rows.labels(row) != NOT_TRAINED
    cuts = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(ids)]
    stretches = tuple(
        Stretch(bool(trained[first]), tokenizer.decode(ids[first:last].tolist())) for first, last in pairwise(cuts)
    )
    return SeenRow(row, len(ids), int(rows.trained[row]), stretches)


@dataclass(frozen=True)
class WindowCut:
    """What one `sequence_len` would do to the rows."""

    window: int
    rows_over: int
    rows_over_share: float
    tokens_dropped: int
    """`excess_length_strategy: drop`: the tokens of the rows that are longer."""
    tokens_cut: int
    """`truncate`: the tokens beyond the window."""


@dataclass(frozen=True)
class Lengths:
    rows: int
    tokens: int
    shortest: int
    median: int
    longest: int
    window_for_99_percent: int
    histogram: tuple[tuple[int, int, int], ...]
    """(from, to, rows): lengths from `from` up to and with `to`."""
    windows: tuple[WindowCut, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def row_lengths(config: Config, config_dir: Path | None = None) -> list[int]:
    """Tokens of every row, held out or not, whatever `sequence_len` says; texts of `completion` are whole, not cut."""
    unlimited = config.model_copy(update={"sequence_len": NO_WINDOW, "min_sample_len": 1})
    inputs = open_inputs(unlimited, config_dir)
    tokenizer = tokenizer_for(unlimited, inputs) if config.train_tokenizer else load_tokenizer(config, config_dir)
    encoder = Encoder.of(tokenizer)
    return [
        one.length
        for part in inputs.train + inputs.eval
        for one in encode_part(part, make_format(part, unlimited, tokenizer, encoder), unlimited, encoder)
    ]


def describe(lengths: Sequence[int], sequence_len: int) -> Lengths:
    """Histogram in half powers of two, and what `sequence_len` and each power of two cuts. `lengths`: not empty."""
    all_rows = np.asarray(lengths, dtype=np.int64)
    longest = int(all_rows.max())
    return Lengths(
        rows=len(all_rows),
        tokens=int(all_rows.sum()),
        shortest=int(all_rows.min()),
        median=int(np.median(all_rows)),
        longest=longest,
        window_for_99_percent=window_for(lengths, 0.99),
        histogram=_histogram(all_rows),
        windows=tuple(_window_cut(all_rows, window) for window in sorted({sequence_len, *_windows(longest)})),
    )


def _histogram(lengths: IntArray) -> tuple[tuple[int, int, int], ...]:
    low = 2 ** int(np.log2(lengths.min()))
    edges = [low]
    while edges[-1] <= lengths.max():
        step = edges[-1]
        edges.append(step * 3 // 2 if step & (step - 1) == 0 and step > 1 else 2 ** int(np.log2(step) + 1))
    counts, _ = np.histogram(lengths, bins=np.asarray(edges))
    return tuple(
        (first, last - 1, int(rows))
        for first, last, rows in ((*edge, n) for edge, n in zip(pairwise(edges), counts, strict=True))
    )


def _windows(longest: int) -> list[int]:
    """Powers of two from 256 until nothing is cut; fewer tokens than that is no window anybody trains with."""
    return [2**power for power in range(8, max(8, int(np.ceil(np.log2(longest)))) + 1)]


def _window_cut(lengths: IntArray, window: int) -> WindowCut:
    over = lengths[lengths > window]
    return WindowCut(window, len(over), len(over) / len(lengths), int(over.sum()), int(over.sum()) - window * len(over))
