"""How long the planner takes: `python -m benchmarks.planner_speed`. Process seconds: a busy machine says the same."""

from __future__ import annotations

import time
from collections.abc import Callable

from dtrain.config.load import loads
from dtrain.hardware.profiles import resolve_profile
from dtrain.models.hub import load_facts
from dtrain.planner.choose import search
from dtrain.planner.pins import space_of
from dtrain.planner.rent import Limits, rent

TEXT = """
base_model: meta-llama/Llama-3.1-8B
datasets: [{path: no/data, type: alpaca}]
"""


def search_seconds() -> float:
    """A search, per 5,000 layouts. To reach: under 1."""
    loaded = loads(TEXT + "global_batch_size: 720720")
    profile, facts = resolve_profile("a100x8"), load_facts("meta-llama/Llama-3.1-8B", revision=None, config_dir=None)
    space = space_of(loaded, profile, facts)
    before = time.process_time()
    found = search(loaded, facts, profile, space)
    return (time.process_time() - before) / len(found.candidates) * 5000


def rent_seconds() -> float:
    """The whole market. To reach: under 3."""
    facts = load_facts("meta-llama/Llama-3.1-8B", revision=None, config_dir=None)
    before = time.process_time()
    rent(loads(TEXT), facts, Limits())
    return time.process_time() - before


def main() -> None:
    measured: dict[str, Callable[[], float]] = {"search, 5,000 layouts": search_seconds, "rent": rent_seconds}
    for words, measure in measured.items():
        print(f"{words:24} {measure():.2f} s")


if __name__ == "__main__":
    main()
