"""A loss that is no number, or too high for too long, ends the run before a checkpoint keeps what came of it.

With `loss_watchdog_action: pass` the steps are written down, and the next life, from the checkpoint before them, goes
past them without training on their rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtrain.config.schema import Config
from dtrain.errors import RunFailed
from dtrain.files import read_json, write_json

NAMED_ROWS = 32
"""So many rows are named in the message; passed.json has all of them."""


@dataclass
class LossWatch:
    """`threshold` and `patience` as Axolotl's keys of the same names."""

    threshold: float | None = None
    patience: int = 3
    passes: bool = False
    too_high: list[int] = field(default_factory=list)
    """Steps in a row above the threshold, counted from 0."""

    @classmethod
    def of(cls, config: Config) -> LossWatch:
        return cls(config.loss_watchdog_threshold, config.loss_watchdog_patience, config.loss_watchdog_action == "pass")

    def bad_steps(self, index: int, loss: float) -> list[int]:
        """The steps to blame, now that the loss of one is known; empty while all is well."""
        if not math.isfinite(loss):
            return [index]
        high = self.threshold is not None and loss > self.threshold
        self.too_high = [*self.too_high, index] if high else []
        return self.too_high if len(self.too_high) >= self.patience else []


def failure(steps: Sequence[int], loss: float, rows: Sequence[Sequence[int]], passes: bool) -> RunFailed:
    """What ends the run. `rows`: of each step, numbers in the prepared data, from 0."""
    told = sorted({row for of_step in rows for row in of_step})
    named = ", ".join(map(str, told[:NAMED_ROWS])) + (" …" if len(told) > NAMED_ROWS else "")
    what = "is no number" if not math.isfinite(loss) else f"is {loss:.3g}, above loss_watchdog_threshold"
    return RunFailed(
        f"the loss of step {steps[-1] + 1} {what}; its rows: {named}", key="loss_watchdog_action",
        fix="`dtrain resume` goes on from the last checkpoint, past these steps" if passes else
        "look at these rows, lower learning_rate, or pass them: --set loss_watchdog_action=pass with max_restarts",
    )  # fmt: skip


def passed(path: Path) -> frozenset[int]:
    """Steps, counted from 0, that earlier lives wrote down."""
    if not path.exists():
        return frozenset()
    return frozenset(int(one["step"]) - 1 for one in read_json(path)["steps"])


def write_down(path: Path, steps: Sequence[int], loss: float, rows: Sequence[Sequence[int]]) -> None:
    """Add steps to those that are passed from now on."""
    before: list[dict[str, Any]] = read_json(path)["steps"] if path.exists() else []
    known = {one["step"] for one in before}
    value = loss if math.isfinite(loss) else None
    new = [
        {"step": step + 1, "loss": value, "rows": sorted(of_step)}
        for step, of_step in zip(steps, rows, strict=True) if step + 1 not in known
    ]  # fmt: skip
    write_json(path, {"schema_version": 1, "steps": before + new})
