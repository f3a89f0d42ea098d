"""Keys that contradict each other."""

from __future__ import annotations

from dtrain.config.schema import Config
from dtrain.config.tree import Node
from dtrain.errors import BadInput


def contradictions(tree: Node) -> list[BadInput]:
    return []


def arithmetic(config: Config) -> tuple[str, ...]:
    return ()
