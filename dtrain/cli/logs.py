"""`dtrain logs RUN`: what every rank said, merged."""

from __future__ import annotations

import click


@click.command("logs")
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@click.option("--rank", type=click.IntRange(min=0), metavar="N", help="Only this rank.")
def command(run: str, follow: bool, rank: int | None) -> None:
    """The logs of RUN, each line with its rank; the rank that failed first comes first.

    \b
    dtrain logs storyteller -f
    dtrain logs storyteller --rank 1
    """
    from dtrain.launch import begin, registry

    entry = registry.find(run)
    for line in begin.logs(entry, follow, rank):
        click.echo(line)
