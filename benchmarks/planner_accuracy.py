"""The planner against published runs, beside other estimators: `python -m benchmarks.planner_accuracy [--out FILE.md]`.

Prints a table, writes every row to JSON with `--json`, and the leaderboard document with `--out`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from benchmarks.peers import PEERS
from benchmarks.published import NotStated, Row, median, published, quantile, setup_of, source_of
from dtrain.planner.memory import Memory, estimate_memory
from dtrain.planner.setup import Setup
from dtrain.planner.throughput import estimate_time

HELD_OUT = ("fms-fsdp", "prime-rl")
"""Sources that took no part in fitting any constant of the time estimate."""

CARD_LADDER_GIB = (10.8, 14.6, 22.0, 31.4, 39.5, 44.4, 79.2, 95.0, 139.8, 178.4)
"""Usable memory of the usual cards: each measured peak is asked against each of them."""

PEAK_KINDS = {"allocated": "peak_allocated", "reserved": "peak_reserved", "nvidia-smi": "peak_smi"}


@dataclass(frozen=True)
class Compared:
    """One published figure beside ours. `error` is ours / theirs − 1."""

    id: str
    source: str
    quality: str
    doubt: str | None
    measured: float
    predicted: float
    peers: dict[str, float | None]
    interval: tuple[float, float] | None = None
    """Of memory: the honest interval, as shares of `predicted`."""

    @property
    def inside(self) -> bool:
        low, high = self.interval or (1.0, 1.0)
        return low * self.predicted <= self.measured <= high * self.predicted

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Verdict:
    """A run that is known to have fitted, or to have run out of memory."""

    id: str
    source: str
    doubt: str | None
    fitted: bool
    predicted_gib: float
    card_gib: float

    @property
    def right(self) -> bool:
        return (self.predicted_gib <= self.card_gib) == self.fitted


@dataclass(frozen=True)
class Results:
    throughput: tuple[Compared, ...]
    memory: tuple[Compared, ...]
    verdicts: tuple[Verdict, ...]
    not_stated: tuple[str, ...]
    """Rows that lack what any estimate needs."""


@lru_cache(maxsize=1)
def compare() -> Results:
    """Every published row that is stated well enough, beside our estimate."""
    throughput: list[Compared] = []
    memory: list[Compared] = []
    verdicts: list[Verdict] = []
    missing: list[str] = []
    for row, setup in _convertible(published("throughput"), missing):
        rate = estimate_time(setup).tokens_per_second_per_gpu
        throughput.append(_compared(row, row["tokens_per_s_per_gpu"], rate, {}))
    for row, setup in _convertible(published("memory"), missing):
        estimate = estimate_memory(setup)
        if row["kind"] != "measured_peak":
            verdicts.append(_verdict(row, setup, estimate))
        elif (figure := _same_kind(row, estimate)) is not None:
            one = _compared(row, row["peak_gib"], figure, {name: peer(setup) for name, peer in PEERS.items()})
            memory.append(replace(one, interval=_interval(estimate)))
        else:
            missing.append(f"{row['id']}: the kind of peak is not stated")
    return Results(tuple(throughput), tuple(memory), tuple(verdicts), tuple(missing))


def _interval(estimate: Memory) -> tuple[float, float]:
    return estimate.peak_low / estimate.peak, estimate.peak_high / estimate.peak


def _convertible(rows: Iterable[Row], missing: list[str]) -> Iterable[tuple[Row, Setup]]:
    for row in rows:
        try:
            yield row, setup_of(row)
        except NotStated as lack:
            missing.append(str(lack))


def _compared(row: Row, measured: float, predicted: float, peers: dict[str, float | None]) -> Compared:
    return Compared(row["id"], source_of(row), row["quality"], row.get("doubt"), measured, predicted, peers)


def _verdict(row: Row, setup: Setup, estimate: Memory) -> Verdict:
    card = row.get("gpu_total_gib") or setup.profile.gpu.memory_gib
    return Verdict(row["id"], source_of(row), row.get("doubt"), row["kind"] == "fits", estimate.peak, card)


def _same_kind(row: Row, estimate: Memory) -> float | None:
    """Our figure of the kind the row measured."""
    for word, figure in PEAK_KINDS.items():
        if str(row["peak_kind"]).startswith(word):
            return float(getattr(estimate, figure))
    return None


# --- summaries ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    rows: int
    median: float
    p90: float
    bias: float
    """The median signed error."""
    worst: float


def summary(errors: Sequence[float]) -> Summary:
    sizes = [abs(error) for error in errors]
    return Summary(len(errors), median(sizes), quantile(sizes, 0.9), median(list(errors)), max(sizes, default=0.0))


def firm(rows: Iterable[Compared]) -> list[Compared]:
    """Rows without a doubt."""
    return [row for row in rows if row.doubt is None]


def by_source(rows: Iterable[Compared]) -> dict[str, list[Compared]]:
    grouped: dict[str, list[Compared]] = {}
    for row in rows:
        grouped.setdefault(row.source, []).append(row)
    return grouped


def peer_errors(rows: Iterable[Compared], peer: str) -> list[float]:
    return [value / row.measured - 1 for row in rows if (value := row.peers[peer]) is not None]


def ladder(rows: Iterable[Compared]) -> tuple[int, int]:
    """Each measured peak against each usual card: (told right, asked)."""
    asked = [(row.measured <= card, row.predicted <= card) for row in rows for card in CARD_LADDER_GIB]
    return sum(truth == told for truth, told in asked), len(asked)


# --- the document -------------------------------------------------------------------------------------------------


def document(results: Results) -> str:
    """docs/planner_accuracy.md."""
    return "\n".join(
        [
            "# How right the planner is",
            "",
            "Written by `python -m benchmarks.planner_accuracy --out docs/planner_accuracy.md`; a test keeps it so.",
            "Published runs and their sources: `tests/measured/published_*.json`; how a row becomes a layout:",
            "`benchmarks/published.py`. An error is predicted / measured − 1; the median and the nine-in-ten figure",
            "are of its size, the bias keeps its sign. Peaks are compared with the same kind of peak (allocated,",
            "reserved, nvidia-smi).",
            "",
            "## Tokens a second",
            "",
            *_table(results.throughput),
            "",
            f"Held out: {', '.join(HELD_OUT)} took no part in fitting the constants of `dtrain/planner/efficiency.py`,",
            "`collectives.py` and `throughput.py`; `python -m benchmarks.fit_throughput` fits those again.",
            "",
            "What it misses, and what we suppose why: runs at the very edge of a card's memory (MPT-70B on 64 A100",
            "40 GB, MPT-30B with one window of 8,192) are slower than planned, perhaps since the allocator flushes its",
            "cache again and again; prime-rl's short steps are slower while its long ones are not, as if it worked",
            "about a second outside each step; llm.c's own kernels beat what PyTorch reaches; how uneven experts are,",
            "no row states.",
            "",
            "## Peak memory",
            "",
            *_table(results.memory),
            "",
            *_under(results),
            "",
            "No source was kept out while the constants of memory were made: these rows were known, and unseen ones",
            "may be further off.",
            "",
            *_peers(results),
            "",
            *_fits(results),
            "",
            "## Rows with a doubt",
            "",
            "Their publisher or reader doubts them; they are shown and counted nowhere above.",
            "",
            *_doubts(results),
            "",
            "## Rows that cannot be planned",
            "",
            *(f"- {lack}" for lack in results.not_stated),
            "",
            "## Every row",
            "",
            "| row | measured | predicted | error |",
            "|---|---|---|---|",
            *(_line(row, "tokens/s/GPU") for row in firm(results.throughput)),
            *(_line(row, "GiB") for row in firm(results.memory)),
            "",
        ]
    )


def _table(rows: Sequence[Compared]) -> list[str]:
    kept = firm(rows)
    lines = _head("source")
    for name, group in sorted(by_source(kept).items()):
        held = " (held out)" if name in HELD_OUT and rows and not rows[0].peers else ""
        lines.append(_summary_line(name + held, summary([row.error for row in group])))
    return [*lines, _summary_line("**all**", summary([row.error for row in kept]))]


def _head(first: str) -> list[str]:
    return [f"| {first} | rows | median | nine in ten within | bias | worst |", "|---|---|---|---|---|---|"]


def _summary_line(name: str, told: Summary) -> str:
    return f"| {name} | {told.rows} | {told.median:.1%} | {told.p90:.1%} | {told.bias:+.1%} | {told.worst:.1%} |"


def _under(results: Results) -> list[str]:
    """What hurts most: a run that needs more than it was told. And whether the intervals are honest."""
    rows = firm(results.memory)
    far, further = (sum(row.error < -share for row in rows) for share in (0.10, 0.20))
    inside = sum(row.inside for row in rows)
    return [
        f"- more than 10 % under: {far} of {len(rows)} ({far / len(rows):.0%}, to reach: 4 %); 20 %: {further}",
        f"- inside `peak_low` to `peak_high`: {inside} of {len(rows)} ({inside / len(rows):.0%}, to reach: 90 %)",
    ]


def _peers(results: Results) -> list[str]:
    lines = ["### Beside other estimators, on the rows each can answer", "", *_head("estimator")]
    kept = firm(results.memory)
    answered = [row for row in kept if any(value is not None for value in row.peers.values())]
    lines.append(_summary_line("dtrain, all rows", summary([row.error for row in kept])))
    lines.append(_summary_line("dtrain, their rows", summary([row.error for row in answered])))
    return lines + [_summary_line(name, summary(peer_errors(kept, name))) for name in PEERS]


def _fits(results: Results) -> list[str]:
    sure = [one for one in results.verdicts if one.doubt is None]
    fitted, failed = [one for one in sure if one.fitted], [one for one in sure if not one.fitted]
    right, asked = ladder(firm(results.memory))
    lines = [
        "### Fits or not",
        "",
        f"- runs that fitted: {sum(one.right for one in fitted)} of {len(fitted)} told right",
        f"- runs out of memory: {sum(one.right for one in failed)} of {len(failed)} told right",
        f"- each measured peak against ten usual cards: {right} of {asked} told right ({right / max(1, asked):.1%})",
    ]
    wrong = [one for one in sure if not one.right]
    return lines + [
        f"- wrong: {one.id}: {one.predicted_gib:.1f} GiB planned on {one.card_gib:.1f}, {_said(one.fitted)}"
        for one in wrong
    ]


def _said(fitted: bool) -> str:
    return "it fitted" if fitted else "it ran out of memory"


def _doubts(results: Results) -> list[str]:
    rows = [row for row in (*results.throughput, *results.memory) if row.doubt is not None]
    return ["| row | measured | predicted | error | doubt |", "|---|---|---|---|---|"] + [
        f"| {row.id} | {row.measured:,.4g} | {row.predicted:,.4g} | {row.error:+.1%} | {row.doubt} |" for row in rows
    ]


def _line(row: Compared, unit: str) -> str:
    return f"| {row.id} | {row.measured:,.5g} {unit} | {row.predicted:,.5g} | {row.error:+.1%} |"


def as_json(results: Results) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "throughput": [asdict(row) | {"error": row.error} for row in results.throughput],
        "memory": [asdict(row) | {"error": row.error} for row in results.memory],
        "verdicts": [asdict(one) | {"right": one.right} for one in results.verdicts],
        "not_stated": list(results.not_stated),
    }


def summary_of(results: Results, what: Literal["throughput", "memory"]) -> Summary:
    return summary([row.error for row in firm(getattr(results, what))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the leaderboard as Markdown here")
    parser.add_argument("--json", type=Path, help="write every row as JSON here")
    told = parser.parse_args()
    results = compare()
    page = document(results)
    if told.out:
        told.out.write_text(page, encoding="utf-8")
    if told.json:
        told.json.write_text(json.dumps(as_json(results), indent=1) + "\n", encoding="utf-8")
    print(page.split("\n## Rows with a doubt")[0])


if __name__ == "__main__":
    main()
