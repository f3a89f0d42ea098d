"""What is to be rented for a run, settled before anything is: read by the keeper, on whichever client it lives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from dtrain.files import write_json
from dtrain.launch.ending import read_or_none
from dtrain.paths import RunPaths


@dataclass(frozen=True)
class OrderBook:
    """`rented/book.json` in the run's folder."""

    run_id: str
    launcher: str
    options: Mapping[str, Any]
    """`launchers.NAME` as it was said."""
    gpu: str
    """Catalogue name, `cpu` for none."""
    nodes: int
    ranks_per_node: int
    device: Literal["cuda", "cpu"]
    extras: Sequence[str]
    plan: Mapping[str, Any]
    files: Mapping[str, str]
    """Name in the run's output folder on each machine → content; launch.json among them."""
    inputs: Sequence[tuple[str, str]]
    """Path here, name there."""
    estimated_hours: float
    """Billed: boot, set-up, data, training, upload."""
    limit_hours: float
    """Then everything ends, however it stands."""

    def write(self, paths: RunPaths) -> None:
        write_json(book_file(paths), {"schema_version": 1, **asdict(self)})

    @classmethod
    def read(cls, paths: RunPaths) -> OrderBook | None:
        told = read_or_none(book_file(paths))
        return None if told is None else cls(**{one.name: told[one.name] for one in fields(cls)})


def book_file(paths: RunPaths) -> Path:
    return paths.rented / "book.json"
