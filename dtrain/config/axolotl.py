"""Axolotl's keys."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dtrain.config.tree import Node
from dtrain.errors import BadInput


@dataclass(frozen=True)
class Translated:
    tree: Node
    notes: tuple[str, ...]
    errors: list[BadInput]


def names() -> Iterable[str]:
    return ()


def translate(tree: Node, file: Path | None) -> Translated:
    keys = dict(tree.value)
    if "sequence_length" in keys:
        keys["sequence_len"] = keys.pop("sequence_length").said(("sequence_length",))
    return Translated(Node(keys, tree.origin), (), [])
