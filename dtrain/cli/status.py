"""`dtrain status RUN`: how a run stands."""

from __future__ import annotations

import json
from typing import Any

import click

from dtrain.cli.options import json_option


@click.command("status")
@click.argument("run")
@json_option
def command(run: str, as_json: bool) -> None:
    """How RUN (an id, a name or a folder) stands: from its exit.json, else its supervisor, else its launcher.

    \b
    dtrain status storyteller
    dtrain status 20261123-191500-k3f9 --json
    """
    from dtrain.launch import begin, registry
    from dtrain.show.console import console_for
    from dtrain.show.runs import print_status, run_json
    from dtrain.show.watch import observer_of

    entry = registry.find(run)
    status = begin.status(entry)
    seen = observer_of(entry).look()
    stage = seen.stage if status.state == "running" else None
    progress: dict[str, Any] = {"stage": stage, "step": seen.step, "steps": seen.steps}
    for key in ("loss", "eval_loss", "tokens_per_second"):
        if seen.newest(key) is not None:
            progress[key] = seen.newest(key)
    if as_json:
        click.echo(json.dumps({"schema_version": 1, **run_json(entry, status), **progress}, indent=2))
        return
    print_status(entry, status, progress, console_for(False))
