"""`dtrain resume RUN`: go on where a run stopped."""

from __future__ import annotations

import json
import sys

import click

from dtrain.cli.options import json_option, profile_option, set_option


@click.command("resume")
@click.argument("run")
@click.option(
    "--force",
    is_flag=True,
    help="Also where no checkpoint was saved (from step 0), and with data or code that changed since.",
)
@profile_option()
@set_option
@click.option("--detach", is_flag=True, help="Start it and return.")
@json_option
def command(run: str, force: bool, profile: str | None, sets: tuple[str, ...], detach: bool, as_json: bool) -> None:
    """Go on with RUN in the same folder, from its last whole checkpoint, with the same batches.

    \b
    dtrain resume storyteller
    dtrain resume storyteller --profile a100x4
    dtrain resume storyteller --set zero_stage=3 --set micro_batch_size=1

    With --profile or --set it goes on with other ranks, another ZeRO stage, another micro-batch …: it is planned anew,
    and the global batch stays as it was.
    For a run that was interrupted, failed or was lost; of a finished one it says so.
    """
    from dtrain.cli.launch import watched
    from dtrain.launch import registry
    from dtrain.launch.again import go_on
    from dtrain.launch.api import Status
    from dtrain.show.console import console_for
    from dtrain.show.runs import run_json
    from dtrain.show.watch import Interrupts, Watched, observer_of

    console = console_for(as_json)
    entry = registry.find(run)
    observer = observer_of(entry)
    observer.skip_old_words()
    with Interrupts() as interrupts:
        again, launcher, step = go_on(entry, force, sets, profile)
        words = f"going on after step {step}" if step is not None else "beginning again at step 0"
        console.print(f"{again.id} ({again.name}): {words}", markup=False)
        if not detach:
            sys.exit(watched(Watched(again, launcher, observer, interrupts), console, as_json))
    console.print(f"  dtrain attach {again.id}  watches it", markup=False)
    if as_json:
        click.echo(json.dumps({"schema_version": 1, **run_json(again, Status("running"))}, indent=2))
