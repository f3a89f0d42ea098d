"""`dtrain stop RUN`: ask a run to save and leave."""

from __future__ import annotations

import click


@click.command("stop")
@click.argument("run")
def command(run: str) -> None:
    """Stop RUN: it finishes its step, saves a checkpoint and ends; `dtrain resume RUN` goes on from there.

    \b
    dtrain stop storyteller

    Returns when nothing of it runs any more. Stopping a run that has ended does nothing.
    """
    from dtrain.launch import begin, registry
    from dtrain.launch.load import load

    entry = registry.find(run)
    begin.refuse_ambiguous(run, entry)
    if begin.status(entry).state == "done":
        click.echo(f"{entry.id} ({entry.name}) has ended: done")
        return
    load(entry.launcher).cancel(entry.submitted())
    status = begin.status(entry)
    click.echo(f"{entry.id} ({entry.name}) is {status.state}: {status.reason}")
