"""Small views of prepared rows that tests compare with what they expect."""

from __future__ import annotations

from typing import Any

from dtrain.data.prepare import Prepared
from dtrain.data.rows import TokenRows


def tokenizer_of(prepared: Prepared) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(prepared.tokenizer_folder)


def parts(prepared: Prepared, row: int = 0, rows: TokenRows | None = None) -> list[tuple[bool, str]]:
    """A row as stretches of (trained?, text), special tokens written out."""
    rows, tokenizer = rows or prepared.train, tokenizer_of(prepared)
    stretches: list[tuple[bool, list[int]]] = []
    for index, label in zip(rows.ids(row).tolist(), rows.labels(row).tolist(), strict=True):
        assert label in (index, -100)
        if not stretches or stretches[-1][0] != (label != -100):
            stretches.append((label != -100, []))
        stretches[-1][1].append(index)
    return [(trained, tokenizer.decode(ids)) for trained, ids in stretches]
