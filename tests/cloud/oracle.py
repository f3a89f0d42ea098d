"""Independent clients of the providers, each in an environment of its own: `make oracles` (their needs contradict ours
and each other's)."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / ".oracles"


def interpreter(provider: str) -> str:
    return str(FOLDER / provider / "bin" / "python")


def needs(provider: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not Path(interpreter(provider)).exists(), reason="needs `make oracles`")
