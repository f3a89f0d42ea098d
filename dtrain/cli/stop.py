"""`dtrain stop RUN`: ask a run to save and leave."""

from __future__ import annotations

import json

import click

from dtrain.cli.options import json_option


@click.command("stop")
@click.argument("run")
@json_option
def command(run: str, as_json: bool) -> None:
    """Stop RUN: it finishes its step, saves a checkpoint and ends; `dtrain resume RUN` goes on from there.

    \b
    dtrain stop storyteller

    Returns when nothing of it runs any more. Stopping a run that has ended does nothing.
    """
    from dtrain.launch import begin, registry
    from dtrain.launch.load import load
    from dtrain.show.runs import run_json

    entry = registry.find(run)
    begin.refuse_ambiguous(run, entry)
    status = begin.status(entry)
    ended = status.state == "done"
    if not ended:
        load(entry.launcher).cancel(entry.submitted())
        status = begin.status(entry)
    if as_json:
        click.echo(json.dumps({"schema_version": 1, **run_json(entry, status)}, indent=2))
        return
    told = "has ended: done" if ended else f"is {status.state}: {status.reason}"
    click.echo(f"{entry.id} ({entry.name}) {told}")
