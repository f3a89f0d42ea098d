from __future__ import annotations

from collections.abc import Callable

import pytest

from dtrain.config.load import Loaded, loads
from dtrain.errors import BadInput, BadInputs

BASE = "base_model: x\ndatasets:\n  - path: data.jsonl\n"
"""Lines 1 to 3 of a file with nothing else in it."""


@pytest.fixture
def config() -> Callable[[str], Loaded]:
    """A config of the least there can be and some more lines; the first of them is line 4 of `x.yaml`."""
    return lambda more, *sets: loads(BASE + more, "x.yaml", sets)


@pytest.fixture
def errors() -> Callable[[str], dict[str | None, BadInput]]:
    """The errors of such a config by key."""

    def read(more: str, *sets: str, base: str = BASE) -> dict[str | None, BadInput]:
        with pytest.raises(BadInputs) as caught:
            loads(base + more, "x.yaml", sets)
        return {error.key: error for error in caught.value.errors}

    return read
