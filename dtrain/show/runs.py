"""Runs as a table, and one run in a few lines."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from dtrain.launch.api import Status
from dtrain.launch.registry import Broken, Entry
from dtrain.show.console import print_pairs
from dtrain.units import duration

COLOURS = {
    "pending": "yellow", "running": "cyan", "done": "green", "failed": "red", "interrupted": "yellow", "lost": "red",
}  # fmt: skip


def print_runs(
    runs: Sequence[tuple[Entry, Status]], broken: Sequence[Broken], console: Console, problems: Sequence[str] = ()
) -> None:
    """Newest first, a line each. Only a terminal cuts the reason short; a pipe gets all of it."""
    if not runs:
        console.print("No runs yet. Start one: dtrain launch configs/storyteller-tiny.yaml --profile cpu")
    rows = [_row(entry, status) for entry, status in runs]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)] if rows else []
    if rows:
        console.print(Text(_aligned(HEADINGS, widths), style="bold"), soft_wrap=True)
    for row, (_, status) in zip(rows, runs, strict=True):
        line = Text(_aligned(row, widths))
        line.highlight_words([status.state], COLOURS[status.state])
        if console.is_terminal:
            line.truncate(console.width, overflow="ellipsis")
        console.print(line, soft_wrap=True)
    for one in broken:
        console.print(Text(f"unreadable entry {one.path}: {one.why}", style="red"), soft_wrap=True)
    for problem in problems:
        console.print(Text(problem, style="red"), soft_wrap=True)


HEADINGS = ("ID", "NAME", "STATE", "PROFILE", "ON", "AGE", "")


def _row(entry: Entry, status: Status) -> tuple[str, ...]:
    age = duration(max(0.0, time.time() - entry.created))
    reason = status.reason if status.reason != status.state else ""
    return (entry.id, entry.name, status.state, entry.profile, entry.launcher, age, " ".join(reason.split()))


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


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
    rows = {
        "run": f"{entry.id}  {entry.name}",
        "state": status.state + (f": {status.reason}" if status.reason and status.reason != status.state else ""),
        "where": f"{entry.profile} on {entry.launcher}, {duration(max(0.0, time.time() - entry.created))} ago",
        "folder": entry.folder,
        "progress": _progress(progress),
    }
    print_pairs(console, {words: value for words, value in rows.items() if value})


def _progress(progress: Mapping[str, Any]) -> str:
    step, steps = progress.get("step"), progress.get("steps")
    said = [f"step {step}" + (f"/{steps}" if steps else "") if step else ""]
    said += [f"{key.replace('_', ' ')} {progress[key]:.4g}" for key in ("loss", "eval_loss") if key in progress]
    return "  ".join(word for word in said if word)
