"""`dtrain fetch RUN`: bring home what a run made elsewhere."""

from __future__ import annotations

import json

import click

from dtrain.cli.options import json_option


@click.command("fetch")
@click.argument("run")
@click.option(
    "--checkpoints",
    type=click.Choice(["none", "last", "all"]),
    help="Default: the last one, unless the run is done and has its model.",
)
@json_option
def command(run: str, checkpoints: str | None, as_json: bool) -> None:
    """Bring the model, the logs and a checkpoint of RUN into its folder here, each file verified by its checksum.

    \b
    dtrain fetch storyteller
    dtrain fetch storyteller --checkpoints all

    May be repeated: what is here already is not sent again, and a file that was cut off goes on where it ended.
    A run that works in a folder of this machine has nothing to fetch.
    """
    from dtrain.launch import registry
    from dtrain.launch.api import CanFetch
    from dtrain.launch.load import load
    from dtrain.show.console import console_for

    console = console_for(as_json)
    entry = registry.find(run)
    launcher = load(entry.launcher)
    files, brought = 0, 0
    if isinstance(launcher, CanFetch):
        files, brought = launcher.fetch(
            entry.submitted(), checkpoints, lambda line: console.print(f"  {line}", markup=False, highlight=False)
        )
    if as_json:
        told = {"schema_version": 1, "id": entry.id, "folder": entry.folder, "files": files, "brought_bytes": brought}
        click.echo(json.dumps(told, indent=2))
        return
    words = f"{files} files, {brought:,} bytes brought" if files else "nothing to fetch: its files are here"
    console.print(f"{entry.id} ({entry.name}): {words}\n{entry.folder}", markup=False, highlight=False)
