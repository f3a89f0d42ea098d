"""From trials to the table: medians, ratios within a repetition, and the goals of issue 2 beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.step_overhead.trials import Contender, Trial

Trials = Mapping[str, Sequence[Trial]]
"""By contender, one a repetition; the n-th trials of all contenders ran within the same minute."""

OURS = "dtrain unpacked"
OURS_PACKED = "dtrain packed"


@dataclass(frozen=True)
class Goal:
    name: str
    wanted: float
    measured: float | None
    """None: not measured here."""
    at_least: bool = True

    @property
    def reached(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted


def ratio(trials: Trials, ours: str, theirs: str) -> float:
    """How many times the tokens of `theirs` ours trains in a second: the median over repetitions."""
    pairs = zip(trials[ours], trials[theirs], strict=True)
    return statistics.median(their.seconds / our.seconds for our, their in pairs)


def cpu_ratio(trials: Trials, ours: str, theirs: str) -> float:
    """The same by processor time, which other work on the machine hardly moves."""
    pairs = zip(trials[ours], trials[theirs], strict=True)
    return statistics.median(their.cpu_seconds / our.cpu_seconds for our, their in pairs)


def scaling(trials: Trials, name: str) -> float:
    """How many times the tokens a second on two ranks are those on one, each with one thread."""
    return ratio(trials, f"{name}, 2 ranks", f"{name}, 1 rank")


def figures(contender: Contender, trials: Sequence[Trial], real_tokens: int, trained_tokens: int) -> dict[str, Any]:
    seconds = statistics.median(trial.seconds for trial in trials)
    return {
        "name": contender.name, "world": contender.world, "threads_per_rank": contender.threads,
        "trained_tokens_per_second": trained_tokens / seconds, "real_tokens_per_second": real_tokens / seconds,
        "cpu_seconds": statistics.median(trial.cpu_seconds for trial in trials),
        "seconds": [round(trial.seconds, 4) for trial in trials],
    }  # fmt: skip


def throughput_goals(trials: Trials) -> list[Goal]:
    """The ratios issue 2 asks for; dtrain as it is best, as TRL is taken at its best."""
    best = min((OURS, OURS_PACKED), key=lambda name: statistics.median(trial.seconds for trial in trials[name]))

    def over(name: str) -> float | None:
        return ratio(trials, best, name) if name in trials else None

    trl = [ratio(trials, best, name) for name in ("trl packing", "trl padding_free") if name in trials]
    return [
        Goal("over a packed bare loop", 1.3, over("bare packed")),
        Goal("over length-sorted padding", 1.0, over("bare sorted")),
        Goal("over TRL's best", 1.5, min(trl, default=None)),
        Goal("over TRL padded, at our precision", 2.5, over("trl padded")),
        Goal("over TRL as it comes (bf16, checkpointing)", 2.5, over("trl default")),
    ]


def scaling_goals(trials: Trials) -> list[Goal]:
    """Two ranks gain as much as the bare loops do, less 5 % for noise."""
    pairs = (
        ("ZeRO 0 beside DDP", "dtrain zero0", "bare ddp"),
        ("ZeRO 2 beside DeepSpeed", "dtrain zero2", "bare deepspeed"),
    )
    return [Goal(f"scaling: {name}", 0.95, scaling(trials, ours) / scaling(trials, bare)) for name, ours, bare in pairs]


def first_step_goals(seconds: Mapping[str, Sequence[float]]) -> list[Goal]:
    """Seconds more than the bare program takes, the median over repetitions."""
    return [
        Goal(
            f"first step of {name}, seconds after a bare one",
            1.0,
            statistics.median(our - bare for our, bare in zip(seconds[name], seconds["bare DeepSpeed"], strict=True)),
            at_least=False,
        )
        for name in ("dtrain ranks", "dtrain launch")
    ]


def curve_goal(largest: float | None) -> Goal:
    return Goal("loss curve, largest difference from TRL's", 1e-3, largest, False)


def table(rows: Sequence[Mapping[str, Any]], trials: Trials, reference: str) -> list[str]:
    lines = [f"{'':26}{'trained tokens/s':>18}{'real tokens/s':>15}{'ratio':>8}{'by CPU time':>13}"]
    for row in rows:
        lines.append(
            f"{row['name']:26}{row['trained_tokens_per_second']:18,.0f}{row['real_tokens_per_second']:15,.0f}"
            f"{ratio(trials, row['name'], reference):8.2f}{cpu_ratio(trials, row['name'], reference):13.2f}"
        )
    return [*lines, f"ratio: trained tokens/s over those of {reference}, median of the repetitions"]


def goal_lines(goals: Sequence[Goal]) -> list[str]:
    words = {True: "reached", False: "MISSED", None: "not measured"}
    return [
        f"{goal.name:58}{'-' if goal.measured is None else format(goal.measured, '.3g'):>10}"
        f"   goal {'≥' if goal.at_least else '≤'} {goal.wanted:<6g} {words[goal.reached]}"
        for goal in goals
    ]
