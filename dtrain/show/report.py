"""The end of a run for people: planned beside measured, what the model wrote, where things lie, what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dtrain.cloud.progress import Progress
from dtrain.errors import BadInput, DtrainError, RunFailed
from dtrain.files import read_json
from dtrain.launch import begin
from dtrain.launch.api import Status
from dtrain.launch.ending import Ending, last_checkpoint, read_or_none
from dtrain.launch.registry import Entry
from dtrain.launch.runlogs import last_lines
from dtrain.launch.standing import never_began
from dtrain.paths import RunPaths
from dtrain.show.console import print_pairs
from dtrain.show.rentals import stages_table
from dtrain.units import duration, memory

LOG_LINES = 25


def print_end(entry: Entry, status: Status, console: Console) -> None:
    """Whatever there is to say once a run is over."""
    paths = RunPaths(begin.folder_of(entry))
    rental = Progress.read(paths)
    if rental is not None:
        console.print(stages_table(rental))
        console.print(Text(rental.words), soft_wrap=True)
    if status.state == "done":
        _print_success(entry, paths, console)
    elif status.state == "interrupted":
        console.print(Text(f"Interrupted: {status.reason}.", style="yellow"), soft_wrap=True)
        _print_next(console, _resume_commands(entry, paths) | _fetch_checkpoint(entry, paths))
    else:
        _print_failure(entry, paths, status, console)


def _print_success(entry: Entry, paths: RunPaths, console: Console) -> None:
    report = read_or_none(paths.report)
    if report is not None:
        console.print(planned_and_measured(report))
    for prompt, text in samples(paths):
        words = Text(prompt, style="bold") + Text(f"\n{text}" if text else "")
        console.print(Panel(words, title=" the model writes ", title_align="left", border_style="green"))
    _print_places(paths, console)
    _print_next(
        console,
        _fetch_command(entry, paths, "bring the model here; it lies where it was trained")
        | {
            f"dtrain generate {shlex.quote(entry.name)} --prompt '…'": "let the model write",
            f"dtrain status {entry.id}": "this run in numbers",
        },
    )


ROWS = (
    ("peak memory, allocated", "peak_allocated_gib", "GiB"),
    ("peak memory, reserved", "peak_reserved_gib", "GiB"),
    ("seconds a step", "step_seconds", "s"),
    ("steps", "steps", ""),
    ("training", "training_seconds", "duration"),
    ("train loss, first", "first_loss", ""),
    ("train loss, last", "last_loss", ""),
    ("held-out loss, first", "first_eval_loss", ""),
    ("held-out loss, last", "last_eval_loss", ""),
    ("held-out loss, best", "best_eval_loss", ""),
)
"""Words, the key in report.json, the unit."""


def planned_and_measured(report: Mapping[str, Any]) -> Table:
    """One row per figure that either side has."""
    table = Table("", "planned", "measured", title="planned beside measured", title_justify="left", title_style="bold")
    for column in table.columns[1:]:
        column.justify = "right"
    planned, measured = report.get("planned", {}), report.get("measured", {})
    for words, key, unit in ROWS:
        told = planned.get(key), measured.get(key)
        if any(value is not None for value in told):
            table.add_row(words, *(_figure(value, unit) for value in told))
    return table


def _figure(value: Any, unit: str) -> str:
    if value is None:
        return ""
    if unit == "duration":
        return duration(value)
    if unit == "GiB":
        return memory(value)
    text = f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
    return f"{text} {unit}".strip()


def samples(paths: RunPaths) -> list[tuple[str, str]]:
    """(prompt, what the model wrote) of samples.json."""
    told: list[dict[str, str]] = read_json(paths.samples) if paths.samples.exists() else []
    return [(one["prompt"], one["text"]) for one in told]


def _print_places(paths: RunPaths, console: Console) -> None:
    has_model = any(paths.output.glob("*.safetensors")) or not paths.remote.exists()
    places = {
        **({"model": paths.output} if has_model else {}),
        "loss curve": paths.loss_plot,
        "metrics": paths.metrics,
        "logs": paths.logs,
        "checkpoints": paths.checkpoints,
    }
    print_pairs(console, {words: _near(place) for words, place in places.items() if place.exists()})


def _fetch_command(entry: Entry, paths: RunPaths, words: str) -> dict[str, str]:
    """For a run on other machines, until its weights are here."""
    if not paths.remote.exists() or any(paths.output.glob("*.safetensors")):
        return {}
    return {f"dtrain fetch {entry.id}": words}


def _near(place: Path) -> str:
    """Relative where that is shorter to type."""
    try:
        return str(place.relative_to(Path.cwd()))
    except ValueError:
        return str(place)


def _print_next(console: Console, commands: Mapping[str, str]) -> None:
    console.print(Text("Next:", style="bold"))
    longest = max(len(command) for command in commands)
    for command, words in commands.items():
        line = Text(f"  {command.ljust(longest)}  ", style="cyan") + Text(words, style="dim")
        console.print(line, soft_wrap=True)  # a command is copied whole


def _resume_commands(entry: Entry, paths: RunPaths) -> dict[str, str]:
    step = last_checkpoint(paths)
    if step is None:
        return {f"dtrain resume {entry.id} --force": "begin again from step 0: no checkpoint was saved"}
    return {f"dtrain resume {entry.id}": f"go on after step {step}"}


def _fetch_checkpoint(entry: Entry, paths: RunPaths) -> dict[str, str]:
    """The weights of a checkpoint stay where it was written; only its manifest is here."""
    step = last_checkpoint(paths)
    here = step is not None and any(paths.checkpoint(step).glob("*.safetensors"))
    return {} if step is None or here else _fetch_command(entry, paths, f"bring the checkpoint of step {step} here")


def _print_failure(entry: Entry, paths: RunPaths, status: Status, console: Console) -> None:
    error = failure_of(paths, status)
    details = _details(paths)
    if details:
        console.print(Text("\n".join(details), style="dim"), soft_wrap=True)
    console.print(Text(f"The run failed: {error}", style="bold red"), soft_wrap=True)
    for other in _other_mistakes(paths):
        console.print(Text(f"And: {other}", style="bold red"), soft_wrap=True)
    if never_began(paths):
        console.print("Put this right and launch it again: the folder is free.")
        return
    commands = {f"dtrain logs {entry.id}": "all it said"}
    _print_next(console, commands | _resume_commands(entry, paths) | _fetch_checkpoint(entry, paths))


def failure_of(paths: RunPaths, status: Status) -> DtrainError:
    """What went wrong, as the failing rank or the data preparation put it, else as the supervisor saw it."""
    told = _error_file(paths)
    if told is None:
        return RunFailed(status.reason or status.state, file=None)
    known = {key: told.get(key) for key in ("file", "line", "key", "value", "allowed", "fix")}
    error = RunFailed(status.reason or str(told.get("message")), **known)
    error.exit_code = status.exit_code or 1
    return error


def _other_mistakes(paths: RunPaths) -> list[BadInput]:
    """What else the data preparation found beside the first mistake."""
    told = (_error_file(paths) or {}).get("errors") or []
    return [BadInput(**{name: value for name, value in one.items() if name != "code"}) for one in told[1:]]


def _error_file(paths: RunPaths) -> Mapping[str, Any] | None:
    """Of the rank that failed first, or of the data preparation."""
    ending = Ending.read(paths)
    if ending is not None and ending.rank is not None:
        return read_or_none(paths.rank_error(ending.rank))
    return read_or_none(paths.prepare_error)


def _details(paths: RunPaths) -> list[str]:
    """The traceback, or the end of the log that tells most. Nothing where the error itself says what to do."""
    told = _error_file(paths)
    if told is not None:
        return [] if told.get("code") == 2 or told.get("fix") else str(told.get("traceback") or "").splitlines()
    ending = Ending.read(paths)
    log = paths.rank_log(ending.rank) if ending is not None and ending.rank is not None else paths.launch_log
    return [f"--- the end of {_near(log)}", *(last_lines(log, LOG_LINES) or ["(it said nothing)"]), *_complaints(paths)]


def _complaints(paths: RunPaths) -> list[str]:
    """What another rank said when one was killed without a word: where they were when it happened."""
    for file in sorted(paths.logs.glob("rank-*.error.json")):
        told = read_or_none(file) or {}
        if told.get("traceback"):
            return [f"--- then rank {told.get('rank')} said", *str(told["traceback"]).splitlines()]
    return []
