"""The learning rate as a pure function of the step, by the same formulas transformers uses (optimization.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LearningRate:
    peak: float
    kind: Literal["cosine", "linear", "constant", "constant_with_warmup", "wsd"]
    total_steps: int
    warmup_steps: int
    min_ratio: float = 0.0
    """The share of the peak at the end."""
    decay_ratio: float = 0.2
    """wsd: the share of all steps that decay."""

    def at(self, step: int) -> float:
        """The rate of optimizer step `step`, counted from 0. The first warm-up step has rate 0."""
        return self.peak * self._share(step)

    def _share(self, step: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if self.kind in ("constant", "constant_with_warmup"):
            return 1.0
        if self.kind == "wsd":
            decay_steps = max(1, math.ceil(self.total_steps * self.decay_ratio))
            return self._down(max(0.0, (step - (self.total_steps - decay_steps)) / decay_steps))
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        if self.kind == "linear":
            return self._down(progress)
        return self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def _down(self, progress: float) -> float:
        return self.min_ratio + (1 - self.min_ratio) * max(0.0, 1.0 - progress)


def warmup_steps(total_steps: int, steps: int | None, ratio: float | None, kind: str) -> int:
    """Said in steps, or as a share, or Axolotl's default: the smaller of 3 % of the steps and 100; 0 if constant."""
    if steps is not None:
        return steps
    if ratio is not None:
        return math.ceil(total_steps * ratio)
    return 0 if kind == "constant" else min(int(0.03 * total_steps), 100)
