"""A loss that is no number, or too high for too long, ends the run before a checkpoint keeps what came of it.

With `loss_watchdog_action: pass` the steps are written down, and the next life, from the checkpoint before them, goes
past them without training on their rows. With `skip` a bad step's update is never made, in the same life; it is
written down too, so that a resumed run goes past the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dtrain.config.schema import Config
from dtrain.data.schedule import Step
from dtrain.errors import RunFailed
from dtrain.files import read_json, write_json

Action = Literal["stop", "pass", "skip"]

NAMED_ROWS = 32
"""So many rows are named in the message; passed.json has all of them."""


@dataclass
class LossWatch:
    """`threshold` and `patience` as Axolotl's keys of the same names."""

    threshold: float | None = None
    patience: int = 3
    action: Action = "stop"
    too_high: list[int] = field(default_factory=list)
    """Steps in a row above the threshold, counted from 0."""

    @classmethod
    def of(cls, config: Config) -> LossWatch:
        return cls(config.loss_watchdog_threshold, config.loss_watchdog_patience, config.loss_watchdog_action)

    @property
    def each_step(self) -> bool:
        """Every loss is looked at, not only those of steps that log or save."""
        return self.action != "stop"

    def is_bad(self, loss: float) -> bool:
        return not math.isfinite(loss) or (self.threshold is not None and loss > self.threshold)

    def skips(self, index: int, loss: float) -> bool:
        """Whether this step's update is not to be made. After `patience` of them in a row it is not the rows: the step
        is left to `bad_steps`, which ends the run."""
        if self.action != "skip" or not self.is_bad(loss):
            return False
        if len(self.too_high) >= self.patience:
            return False
        self.too_high.append(index)
        return True

    def bad_steps(self, index: int, loss: float) -> list[int]:
        """The steps to blame, now that the loss of one is known; empty while all is well."""
        if not math.isfinite(loss):
            return [index]
        self.too_high = [*self.too_high, index] if self.is_bad(loss) else []
        return self.too_high if len(self.too_high) >= self.patience else []


def failure(steps: Sequence[int], loss: float, rows: Sequence[Sequence[int]], passes: bool) -> RunFailed:
    """What ends the run. `rows`: of each step, numbers in the prepared data, from 0."""
    what = "is no number" if not math.isfinite(loss) else f"is {loss:.3g}, above loss_watchdog_threshold"
    return RunFailed(
        f"the loss of step {steps[-1] + 1} {what}; its rows: {named(rows)}", key="loss_watchdog_action",
        fix="`dtrain resume` goes on from the last checkpoint, past these steps" if passes else
        "look at these rows, lower learning_rate, or go without them: `loss_watchdog_action: skip`, or `pass` with "
        "max_restarts",
    )  # fmt: skip


def named(rows: Sequence[Sequence[int]]) -> str:
    """The rows of some steps, as text."""
    told = sorted({row for of_step in rows for row in of_step})
    return ", ".join(map(str, told[:NAMED_ROWS])) + (" …" if len(told) > NAMED_ROWS else "")


def rows_of(step: Step) -> list[int]:
    """Every row that a step trains on, over all ranks."""
    return [row for dealt in step.micro for slots in dealt for slot in slots for row in slot]


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
