"""What became of the rows: counts per split, what was dropped and why. For people as lines, for scripts as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dtrain.data.encode import Encoded, row_numbers
from dtrain.units import count


@dataclass(frozen=True)
class SplitCounts:
    rows: int
    tokens: int
    trained_tokens: int
    longest: int
    """Tokens of the longest row."""


@dataclass(frozen=True)
class Lost:
    """Rows of one fate, over both splits."""

    rows: int
    tokens: int
    """Dropped with them, or cut off."""
    share: float
    """Of the rows there were."""
    first_rows: tuple[str, ...] = ()
    """`datasets[0] row 17`, the first few."""


@dataclass(frozen=True)
class DataReport:
    train: SplitCounts
    eval: SplitCounts | None
    dropped: Mapping[str, Lost]
    """By reason: `too_long`, `too_short`, `duplicates`, `nothing_trained_after_truncation`; and `truncated`."""
    window: int
    window_for_99_percent: int
    """The smallest window in which 99 % of the rows are whole."""
    longest_row: int
    """Tokens of the longest row there was, kept or not."""
    stop_tokens: tuple[int, ...]
    """Tokens that trained turns end in."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> DataReport:
        return cls(
            train=SplitCounts(**told["train"]),
            eval=SplitCounts(**told["eval"]) if told["eval"] else None,
            dropped={
                why: Lost(**{**lost, "first_rows": tuple(lost["first_rows"])}) for why, lost in told["dropped"].items()
            },
            window=told["window"],
            window_for_99_percent=told["window_for_99_percent"],
            longest_row=told["longest_row"],
            stop_tokens=tuple(told["stop_tokens"]),
        )

    def lines(self) -> list[str]:
        """For people: what is there, and a line for each loss."""
        splits = [("train", self.train), *([("held out", self.eval)] if self.eval else [])]
        said = [
            f"{name}: {counts.rows:,} rows, {count(counts.tokens)} tokens, {count(counts.trained_tokens)} trained, "
            f"longest {counts.longest:,}"
            for name, counts in splits
        ]
        return said + [self._lost_line(why, lost) for why, lost in self.dropped.items()]

    def _lost_line(self, why: str, lost: Lost) -> str:
        where = f" ({'; '.join(lost.first_rows)})" if lost.first_rows else ""
        said = _WORDS[why].format(rows=f"{lost.rows:,}", tokens=count(lost.tokens), window=f"{self.window:,}")
        advice = ""
        if why in ("too_long", "truncated", "nothing_trained_after_truncation"):
            advice = f"; sequence_len: {self.window_for_99_percent} would keep 99 % of the rows whole"
        return f"{said}: {lost.share:.1%} of the rows{advice}{where}"


_WORDS = {
    "too_long": "dropped {rows} rows with {tokens} tokens that are longer than sequence_len {window}",
    "too_short": "dropped {rows} rows shorter than min_sample_len",
    "duplicates": "dropped {rows} rows equal to an earlier one",
    "truncated": "cut {rows} rows at sequence_len {window}, {tokens} tokens lost",
    "nothing_trained_after_truncation": "dropped {rows} rows of whose trained part nothing was left at {window} tokens",
}
LOSSES = tuple(_WORDS)


@dataclass
class Tally:
    """Counts while rows go by."""

    lengths: list[int] = field(default_factory=list)
    rows: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def add(self, key: str, one: Encoded) -> None:
        self.lengths.append(one.length)
        if one.fate != "kept":
            self.rows.setdefault(one.fate, []).append((key, one.number))
            lost = one.length - len(one.example.ids) if one.fate == "truncated" else one.length
            self.tokens[one.fate] = self.tokens.get(one.fate, 0) + lost

    def lost(self, duplicates: int) -> dict[str, Lost]:
        total = len(self.lengths) + duplicates
        found = {
            why: Lost(len(self.rows[why]), self.tokens[why], len(self.rows[why]) / total, first_rows(self.rows[why]))
            for why in LOSSES
            if why in self.rows
        }
        return {**found, **({"duplicates": Lost(duplicates, 0, duplicates / total)} if duplicates else {})}

    def window_for(self, share: float) -> int:
        return window_for(self.lengths, share)


def window_for(lengths: Sequence[int], share: float) -> int:
    """The smallest window in which this share of the rows is whole."""
    return int(np.quantile(np.asarray(lengths), share, method="inverted_cdf")) if len(lengths) else 0


def first_rows(rows: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    keys = list(dict.fromkeys(key for key, _ in rows))
    return tuple(f"{key} {row_numbers([number for other, number in rows if other == key])}" for key in keys[:3])
