"""A dry run as text: exactly what would be written and run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from dtrain.launch.draft import Draft
from dtrain.launch.registry import Entry
from dtrain.units import dollars


def print_dry_run(draft: Draft, problems: Sequence[str], console: Console) -> None:
    """Files with their content, commands, price, and what would stop it."""
    console.print(Text(f"Dry run: nothing was written or started. Run {draft.entry.id}, {draft.entry.name}", "bold"))
    written = draft.as_json()["files"]
    for path, content in written.items():
        console.print(Rule(Text(f"would write {path}"), align="left", style="dim"))
        console.print(Text(content.rstrip()), soft_wrap=True)
    for number, request in enumerate(draft.rendered.requests, 1):
        console.print(Rule(f"would ask the provider, {number}", align="left", style="dim"))
        console.print(Text(json.dumps(request, indent=2, ensure_ascii=False)), soft_wrap=True)
    console.print(Rule("would run", align="left", style="dim"))
    for command in draft.rendered.commands:
        console.print(Text(shlex.join(command), style="cyan"), soft_wrap=True)
    for note in draft.rendered.notes:
        console.print(Text(note), soft_wrap=True)
    if draft.rendered.usd_per_hour:
        console.print(f"price: {dollars(draft.rendered.usd_per_hour)} an hour")
    for problem in problems:
        console.print(Text(f"would be refused now: {problem}", style="yellow"), soft_wrap=True)


def print_next_steps(entry: Entry, steps: Sequence[str], console: Console) -> None:
    """Of a run that a person starts elsewhere."""
    console.print(Text(f"Ready: {entry.id} ({entry.name}). Nothing runs until you do this:"), soft_wrap=True)
    for number, step in enumerate(steps, 1):
        console.print(Text(f"  {number}. {step}"), soft_wrap=True)


def print_started(draft: Draft, console: Console) -> None:
    """After `--detach`: the id and how to follow."""
    run_id = draft.entry.id
    console.print(Text(f"Started {run_id} ({draft.entry.name}); it goes on without this terminal."), soft_wrap=True)
    for command, words in (("attach", "watch it"), ("logs -f", "read along"), ("stop", "stop it; it saves first")):
        console.print(Text(f"  dtrain {command} {run_id}".ljust(44), style="cyan") + Text(words, style="dim"))
