"""How the suite is shared out: tests that need the same machines, the same cores or the same libraries are a chain.

A chain is an `xdist_group`, which one worker runs from end to end. The longest begin first (`--no-loadscope-reorder`:
xdist would begin with the chain of most tests). A file that belongs to none is one of its own: what its tests share is
made once. What hypothesis tries is the same each time: what it finds by chance belongs to whoever looks for it
(DTRAIN_FUZZ=1), not to whoever changed a line elsewhere.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

CHAINS = ("e2e", "slurm", "cloud", "gloo", "ssh", "torch", "wheel")
"""By their time, the longest first. Rented machines and the hosts of SLURM and SSH mostly wait; runs of the command
line, of bare ranks, and models in a test's own process take a core each."""
IN_PROCESS = (Path(__file__).with_name("train"), Path(__file__).with_name("planner") / "test_trace.py")
"""Where what is left to a worker loads torch: once is enough."""

settings.register_profile("same each time", derandomize=True)
if "DTRAIN_FUZZ" not in os.environ:
    settings.load_profile("same each time")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups; folders' own hooks have marked theirs by then
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(chain_of_the_rest(item.path)))
    items.sort(key=place_of)


def chain_of_the_rest(file: Path) -> str:
    if any(file.is_relative_to(place) for place in IN_PROCESS):
        return "torch"
    return str(file.relative_to(Path(__file__).parent))


def place_of(item: pytest.Item) -> int:
    mark = item.get_closest_marker("xdist_group")
    return CHAINS.index(mark.args[0]) if mark is not None and mark.args[0] in CHAINS else len(CHAINS)
