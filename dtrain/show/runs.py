"""Runs as a table, and one run in a few lines."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dtrain.launch.api import Status
from dtrain.launch.registry import Broken, Entry
from dtrain.units import duration

COLOURS = {
    "pending": "yellow", "running": "cyan", "done": "green", "failed": "red", "interrupted": "yellow", "lost": "red",
}  # fmt: skip


def print_runs(
    runs: Sequence[tuple[Entry, Status]], broken: Sequence[Broken], console: Console, problems: Sequence[str] = ()
) -> None:
    """Newest first."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("ID", "NAME", "STATE", "PROFILE", "ON", "AGE", ""):
        table.add_column(heading, no_wrap=heading in ("ID", "STATE", "AGE"), overflow="fold")
    for entry, status in runs:
        age = duration(max(0.0, time.time() - entry.created))
        state = Text(status.state, style=COLOURS[status.state])
        reason = status.reason if status.state != "done" else ""
        table.add_row(entry.id, Text(entry.name), state, entry.profile, entry.launcher, age, Text(reason, style="dim"))
    if runs:
        console.print(table)
    else:
        console.print("No runs yet. Start one: dtrain launch configs/storyteller-tiny.yaml --profile cpu")
    for entry_file in broken:
        console.print(Text(f"unreadable entry {entry_file.path}: {entry_file.why}", style="red"), soft_wrap=True)
    for problem in problems:
        console.print(Text(problem, style="red"), soft_wrap=True)


def run_json(entry: Entry, status: Status) -> dict[str, Any]:
    return {
        "id": entry.id,
        "name": entry.name,
        "folder": entry.folder,
        "launcher": entry.launcher,
        "profile": entry.profile,
        "created": entry.created,
        "state": status.state,
        "exit_code": status.exit_code,
        "reason": status.reason or None,
    }


def print_status(entry: Entry, status: Status, progress: Mapping[str, Any], console: Console) -> None:
    """The run, how it stands, and its newest figures."""
    table = Table.grid(padding=(0, 2))
    rows = {
        "run": f"{entry.id}  {entry.name}",
        "state": status.state + (f": {status.reason}" if status.reason and status.reason != status.state else ""),
        "where": f"{entry.profile} on {entry.launcher}, {duration(max(0.0, time.time() - entry.created))} ago",
        "folder": entry.folder,
        "progress": _progress(progress),
    }
    for words, value in rows.items():
        if value:
            table.add_row(Text(words, style="dim"), Text(value, overflow="fold"))
    console.print(table)


def _progress(progress: Mapping[str, Any]) -> str:
    step, steps = progress.get("step"), progress.get("steps")
    said = [f"step {step}" + (f"/{steps}" if steps else "") if step else ""]
    said += [f"{key.replace('_', ' ')} {progress[key]:.4g}" for key in ("loss", "eval_loss") if key in progress]
    return "  ".join(word for word in said if word)
