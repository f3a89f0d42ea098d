"""The fitted constants of the time estimate, fitted again: `python -m benchmarks.fit_throughput`.

Prints each constant as it is written in the code and as the fit would have it, for a person to round and to judge; it
changes nothing. All rows of the fitting sources count alike, large errors less than in proportion (a row that its
machine spoiled should not pull), and every constant is held near its written value, which physics gave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from benchmarks.compared import HELD_OUT
from benchmarks.published import NotStated, published, setup_of, source_of
from dtrain.planner import collectives, efficiency, kernels, throughput, traffic
from dtrain.planner.setup import Setup

ROUNDS = 20
LARGE_ERROR = 0.25
"""Log errors beyond this weigh no more."""
SLACK = 0.2
"""Log distance from the written value that costs as much as half a per mille of error."""


@dataclass(frozen=True)
class Constant:
    """A module's figure, or one entry of its table."""

    module: ModuleType
    name: str
    key: Any = None

    @property
    def value(self) -> float:
        held = getattr(self.module, self.name)
        return float(held if self.key is None else held[self.key])

    def put(self, value: float) -> None:
        held = getattr(self.module, self.name)
        setattr(self.module, self.name, value if self.key is None else {**held, self.key: value})

    def __str__(self) -> str:
        return self.name if self.key is None else f"{self.name}[{self.key}]"


FITTED = (
    Constant(efficiency, "USUAL_SHAPE_SHARE"),
    Constant(efficiency, "SUSTAINED_SHARE", 9),
    Constant(efficiency, "FP8_SHARE"),
    Constant(efficiency, "OUTPUT_BYTES"),
    Constant(efficiency, "LEGACY_MMA_SHARE", 9),
    Constant(efficiency, "ATTENTION_SHARE", "triton"),
    Constant(efficiency, "ATTENTION_HALF_WINDOW"),
    Constant(efficiency, "HEAD_DIM_HALF"),
    Constant(collectives, "HOP_SECONDS"),
    Constant(throughput, "CONTENTION"),
    Constant(throughput, "JITTER_SECONDS_PER_DOUBLING"),
    Constant(throughput, "STRAGGLER_PER_DOUBLING"),
)


def fitting_rows() -> list[tuple[Setup, float]]:
    """Layouts and measured tokens a second and GPU; nothing held out, nothing doubted."""
    found = []
    for row in published("throughput"):
        if row.get("doubt") or source_of(row) in HELD_OUT:
            continue
        try:
            found.append((setup_of(row), float(row["tokens_per_s_per_gpu"])))
        except NotStated:
            continue
    return found


def loss_of(rows: list[tuple[Setup, float]], written: Mapping[Constant, float]) -> float:
    for cached in (kernels.passes, efficiency.rates_of, traffic.layer_traffic, collectives.link_over):
        cached.cache_clear()
    errors = [math.log(throughput.estimate_time(setup).tokens_per_second_per_gpu / rate) for setup, rate in rows]
    misfit: float = sum(min(abs(error), LARGE_ERROR) ** 1.3 for error in errors) / len(errors)
    drift = sum((math.log(one.value / value) / SLACK) ** 2 for one, value in written.items())
    return misfit + 0.0005 * drift


def descend(constants: tuple[Constant, ...], loss: Callable[[], float]) -> None:
    """One constant at a time, a step up or down while it helps, smaller steps when neither does."""
    best, steps = loss(), dict.fromkeys(constants, 0.1)
    for _ in range(ROUNDS):
        for one in constants:
            before = one.value
            for factor in (1 + steps[one], 1 / (1 + steps[one])):
                one.put(before * factor)
                if (now := loss()) < best:
                    best = now
                    break
                one.put(before)
            else:
                steps[one] *= 0.6


def main() -> None:
    rows = fitting_rows()
    written = {one: one.value for one in FITTED}
    print(f"{len(rows)} rows, misfit {loss_of(rows, written):.4f} as written")
    descend(FITTED, lambda: loss_of(rows, written))
    print(f"{'':30s} misfit {loss_of(rows, written):.4f} as fitted")
    for one, value in written.items():
        print(f"{one!s:30s} {value:12.4g} {one.value:12.4g}")


if __name__ == "__main__":
    main()
