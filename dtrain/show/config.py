"""A config, its values and where each was said; an Axolotl file's losses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click

from dtrain.config.importing import Imported
from dtrain.config.origins import DEFAULT, Loaded, Origin

VALUE_WIDTH = 60
"""Characters of a value in the table; `--json` has them whole."""


@dataclass(frozen=True)
class Row:
    """One effective value."""

    key: str
    value: Any
    origin: Origin

    def as_json(self) -> dict[str, Any]:
        origin = self.origin
        where = {"kind": origin.kind, "file": origin.file, "line": origin.line, "said_as": origin.said_as}
        return {"key": self.key, "value": self.value, "origin": origin.text(), **where}


def rows(loaded: Loaded, planned: Mapping[str, Any] | None = None) -> list[Row]:
    """Every value in the schema's order. `planned`: values that the planner chose for keys left to it."""
    found = [Row(key, value, _origin(loaded, key)) for key, value in _leaves(loaded.config.model_dump(mode="json"), "")]
    chosen = planned or {}
    return [Row(row.key, chosen[row.key], Origin("planner")) if _left_open(row, chosen) else row for row in found]


def _left_open(row: Row, chosen: Mapping[str, Any]) -> bool:
    return row.value in ("auto", None) and chosen.get(row.key) is not None


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inside in value.items():
            yield from _leaves(inside, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        for index, inside in enumerate(value):
            yield from _leaves(inside, f"{key}[{index}]")
    else:
        yield key, value


def _origin(loaded: Loaded, key: str) -> Origin:
    """Of the value itself; a list that was said whole has its own line."""
    return loaded.origins.get(key, DEFAULT)


def config_json(loaded: Loaded, planned: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "file": str(loaded.file) if loaded.file is not None else None,
        "config": loaded.config.model_dump(mode="json"),
        "values": [row.as_json() for row in rows(loaded, planned)],
        "notes": list(loaded.notes),
    }


def print_config(loaded: Loaded, planned: Mapping[str, Any] | None = None) -> None:
    """One line a value: key, value, origin. Defaults are dim."""
    table = [(row.key, _short(row.value), _origin_words(row.origin), row.origin.kind) for row in rows(loaded, planned)]
    keys, values = (max(len(line[column]) for line in table) for column in (0, 1))
    for key, value, origin, kind in table:
        line = f"{key:<{keys}}  {value:<{values}}  {origin}"
        click.echo(click.style(line, dim=True) if kind == "default" else line)
    print_notes(loaded.notes)


def print_notes(notes: tuple[str, ...]) -> None:
    for note in notes:
        click.echo(f"note: {note}", err=True)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value.isprintable() and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= VALUE_WIDTH else text[: VALUE_WIDTH - 1] + "…"


def _origin_words(origin: Origin) -> str:
    said = f" ({origin.said_as})" if origin.kind == "file" and origin.said_as else ""
    return origin.text() + said


def imported_json(imported: Imported) -> dict[str, Any]:
    lost = [one.as_json() for one in imported.lost]
    return {"schema_version": 1, "lost": lost, "notes": list(imported.notes), "config": imported.config}


def print_losses(imported: Imported, file: str) -> None:
    """To stderr: what Axolotl would have lost. The YAML itself goes to stdout."""
    if not imported.lost:
        click.echo("Axolotl would have lost nothing of this file.", err=True)
    else:
        click.echo("What Axolotl would have lost or changed in silence:", err=True)
    for one in imported.lost:
        click.echo(f"  {file}:{one.line}: {one.key}: {one.message}", err=True)
    print_notes(imported.notes)
