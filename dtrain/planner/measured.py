"""What runs measured beside what was planned for them: kept on the machine, and its own bias in later plans.

A row compares like with like. Steps are compared at the tokens they really had, between the plan's mean step and its
full one; memory only where the run's longest batch was about as long as the full windows that memory is planned for.
"""

from __future__ import annotations

import hashlib
import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dtrain import paths
from dtrain.files import write_whole
from dtrain.hardware.profiles import Profile

SAME_TOKENS = 0.1
"""Token counts this close are compared as they are."""
FEWEST_STEPS = 4
"""A run's first step warms up; its median needs a few more."""
LAST_RUNS = 10
"""Bias is the median over so many runs at most: the newest."""
KEPT_RUNS = 1000
MEMORY_BIAS = (0.8, 1.25)
TIME_BIAS = (0.1, 10.0)
"""Beyond these a difference is no bias but a mistake, somewhere: it is told and not used."""


# --- a row --------------------------------------------------------------------------------------------------------


def compared(plan: Mapping[str, Any], report: Mapping[str, Any], run: str) -> dict[str, Any]:
    """One row: what was planned (without any bias), what was measured, and the errors, planned / measured − 1.

    An error is None where the two cannot be compared; `notes` says why. It names no path, no data and no host.
    """
    planned, measured = _planned(plan, report), _measured(report)
    notes: list[str] = []
    errors = {
        "peak_allocated": _memory_error(planned, measured, notes),
        "step_seconds": _time_error(planned, measured, notes),
    }
    return {
        "schema_version": 1, "run": run, "machine": this_machine(), "versions": plan["versions"],
        "profile": plan["profile"], "model": {**plan["model"], "name": plan["model"]["name"].rsplit("/", 1)[-1]},
        "choice": plan["choice"], "planned": planned, "measured": measured, "errors": errors, "notes": notes,
    }  # fmt: skip


def this_machine() -> str:
    """A name that tells machines apart and says nothing about them."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _planned(plan: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    choice, schedule, bias = plan["choice"], plan["schedule"], plan.get("bias", {})
    memory, time = bias.get("memory", 1.0), bias.get("time", 1.0)
    full_tokens = choice["global_batch_size"] * choice["sequence_len"]
    full = plan["throughput"]["step_seconds"] / time
    mean_tokens = schedule["tokens"] / schedule["steps"]
    seconds = _at(
        report["measured"].get("tokens_seen", 0) / max(1, report["measured"].get("steps", 1)),
        (mean_tokens, schedule.get("step_seconds", full * time) / time), (full_tokens, full),
    )  # fmt: skip
    return {
        "peak_allocated_gib": plan["memory_gib"]["peak_allocated"] / memory,
        "peak_reserved_gib": plan["memory_gib"]["peak_reserved"] / memory,
        "longest_tokens": choice["micro_batch_size"] * choice["sequence_len"],
        "step_seconds": seconds,
        "tokens_per_step": mean_tokens,
    }


def _measured(report: Mapping[str, Any]) -> dict[str, Any]:
    told = report["measured"]
    kept = ("peak_allocated_gib", "peak_reserved_gib", "longest_tokens", "step_seconds", "steps")
    seen, steps = told.get("tokens_seen"), told.get("steps")
    return {**{key: told.get(key) for key in kept}, "tokens_per_step": seen / steps if seen and steps else None}


def _at(tokens: float, mean: tuple[float, float], full: tuple[float, float]) -> float | None:
    """Planned seconds of a step of `tokens`, on the line through two (tokens, seconds); None too far from both."""
    for known, seconds in (mean, full):
        if abs(tokens / known - 1) <= SAME_TOKENS:
            return seconds * tokens / known
    if not 0.5 * mean[0] <= tokens <= full[0] or mean[0] > (1 - SAME_TOKENS) * full[0]:
        return None
    return mean[1] + (full[1] - mean[1]) * (tokens - mean[0]) / (full[0] - mean[0])


def _memory_error(planned: Mapping[str, Any], measured: Mapping[str, Any], notes: list[str]) -> float | None:
    peak, longest = measured["peak_allocated_gib"], measured["longest_tokens"]
    if not peak:
        notes.append("memory was not measured")
        return None
    if longest is not None and longest < (1 - SAME_TOKENS) * planned["longest_tokens"]:
        full = planned["longest_tokens"]
        notes.append(f"memory is planned for {full:,} tokens a micro-batch, the longest had {longest:,}")
        return None
    return float(planned["peak_allocated_gib"] / peak - 1)


def _time_error(planned: Mapping[str, Any], measured: Mapping[str, Any], notes: list[str]) -> float | None:
    if not measured["step_seconds"] or measured["steps"] < FEWEST_STEPS:
        notes.append(f"fewer than {FEWEST_STEPS} steps: their time was not compared")
        return None
    if planned["step_seconds"] is None:
        mean, real = planned["tokens_per_step"], measured["tokens_per_step"] or 0
        notes.append(f"steps were planned with {mean:,.0f} tokens and had {real:,.0f}: their time was not compared")
        return None
    return float(planned["step_seconds"] / measured["step_seconds"] - 1)


# --- the machine's own records ------------------------------------------------------------------------------------


def keep(row: Mapping[str, Any]) -> None:
    """Add a row to this machine's records; a run that is there already is replaced. OSError if it cannot be written."""
    rows = [one for one in kept_rows() if one["run"] != row["run"]][-KEPT_RUNS + 1 :]
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in [*rows, row])
    write_whole(paths.measured(), text)


def kept_rows() -> list[dict[str, Any]]:
    """Oldest first; a line that cannot be read is passed over: the next run writes the file anew without it."""
    try:
        lines = paths.measured().read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [row for line in lines if (row := _parsed(line)) is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    needed = {"run", "machine", "versions", "profile", "errors"}
    return row if isinstance(row, dict) and needed <= set(row) else None


# --- bias ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bias:
    """What plans for this machine are multiplied by."""

    memory: float = 1.0
    time: float = 1.0
    runs: int = 0
    """Measured runs behind it."""
    words: str = ""
    """For the plan's reasons; empty where nothing was measured."""

    def as_json(self) -> dict[str, Any]:
        return {"memory": self.memory, "time": self.time, "runs": self.runs}


NO_BIAS = Bias()


def own_bias(profile: Profile, versions: Mapping[str, str | None]) -> Bias:
    """From this machine's runs on the same cards, as many of them, with the same versions. NO_BIAS without any."""
    rows = [row for row in kept_rows() if _is_alike(row, profile, versions)][-LAST_RUNS:]
    memory, time = (_ratios(rows, key) for key in ("peak_allocated", "step_seconds"))
    if not memory and not time:
        return NO_BIAS
    told = [_usable(memory, MEMORY_BIAS, "memory"), _usable(time, TIME_BIAS, "time")]
    runs = max(len(memory), len(time))
    said = " and ".join(words for _, words in told if words)
    words = f"bias: {runs} measured run{'s' if runs > 1 else ''} here, {said} (--no-bias leaves it out)"
    return Bias(told[0][0], told[1][0], runs, words)


def _is_alike(row: Mapping[str, Any], profile: Profile, versions: Mapping[str, str | None]) -> bool:
    told = row["profile"]
    return (
        row["machine"] == this_machine()
        and row["versions"] == dict(versions)
        and (told["gpu"], told["gpus_per_node"], told["nodes"])
        == (profile.gpu.name, profile.gpus_per_node, profile.nodes)
    )


def _ratios(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Measured over planned."""
    return [1 / (1 + row["errors"][key]) for row in rows if row["errors"].get(key) is not None]


def _usable(ratios: Sequence[float], allowed: tuple[float, float], name: str) -> tuple[float, str]:
    if not ratios:
        return 1.0, ""
    middle = statistics.median(ratios)
    if not allowed[0] <= middle <= allowed[1]:
        return 1.0, f"{name} × {middle:.2f}, which is too much to be a bias and is not used"
    return middle, f"{name} × {middle:.2f}"
