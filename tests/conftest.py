"""How the suite is shared out: tests that need the same machines, or all of this one, are a chain on one worker.

A chain is an `xdist_group`. The longest begin first, and what belongs to none fills the rest (`--no-loadscope-reorder`:
xdist would begin with the chain of most tests).
"""

from __future__ import annotations

import pytest

CHAINS = ("cloud", "slurm", "e2e", "gloo", "ssh", "wheel")
"""By their time, the longest first. Rented machines, SLURM's and SSH's hosts mostly wait; the command line's and the
bare ranks' runs take a core each."""


@pytest.hookimpl(trylast=True)  # after each folder has marked its own
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=place_of)


def place_of(item: pytest.Item) -> int:
    mark = item.get_closest_marker("xdist_group")
    return len(CHAINS) if mark is None else CHAINS.index(mark.args[0])
