"""Every published run beside our estimate, and the errors in figures; `planner_accuracy` makes the page of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from benchmarks import unseen
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
    unseen_throughput: tuple[Compared, ...] = ()
    unseen_memory: tuple[Compared, ...] = ()
    """Runs that took no part in fitting, planned from a config file each."""
    second_throughput: tuple[Compared, ...] = ()
    first_look: tuple[Compared, ...] = ()
    """The second batch of them, as we tell it now and as we told it when it was looked up."""
    second_memory: tuple[Compared, ...] = ()
    first_look_memory: tuple[Compared, ...] = ()
    """The same of peaks; the latter without rows that could not be planned then."""


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
    first = (tuple(throughput), tuple(memory), tuple(verdicts), tuple(missing))
    return Results(*first, *_unseen(), *_second_batch(), *_second_peaks())


def _unseen() -> tuple[tuple[Compared, ...], tuple[Compared, ...]]:
    throughput: list[Compared] = []
    memory: list[Compared] = []
    for row in unseen.unseen():
        plan, source, doubt = unseen.plan_of(row), unseen.source_of(row), row.get("doubt")
        if rate := row.get("tokens_per_s_per_gpu"):
            mine = plan.time.tokens_per_second_per_gpu
            throughput.append(Compared(row["id"], source, "", doubt, rate, mine, {}))
        if peak := row.get("peak_gib"):
            figure = _same_kind(row, plan.memory) or plan.memory.peak
            memory.append(Compared(row["id"], source, "", doubt, peak, figure, {}, _interval(plan.memory)))
    return tuple(throughput), tuple(memory)


def _second_batch() -> tuple[tuple[Compared, ...], tuple[Compared, ...]]:
    now, then = [], []
    for row in unseen.second_batch():
        told = Compared(row["id"], unseen.source_of(row), "", row.get("doubt"), row["tokens_per_s_per_gpu"], 0.0, {})
        now.append(replace(told, predicted=unseen.plan_of(row).time.tokens_per_second_per_gpu))
        then.append(replace(told, predicted=row["first_look_tokens_per_s_per_gpu"]))
    return tuple(now), tuple(then)


def _second_peaks() -> tuple[tuple[Compared, ...], tuple[Compared, ...]]:
    now, then = [], []
    for row in unseen.second_peaks():
        memory = unseen.plan_of(row).memory
        told = Compared(row["id"], unseen.source_of(row), "", row.get("doubt"), row["peak_gib"], 0.0, {})
        now.append(replace(told, predicted=_same_kind(row, memory) or memory.peak, interval=_interval(memory)))
        if row["first_look_gib"] is not None:
            then.append(replace(told, predicted=row["first_look_gib"]))
    return tuple(now), tuple(then)


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
