"""`dtrain attach RUN`: the screen of a run that was started elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command("attach")
@click.argument("run")
def command(run: str) -> None:
    """Watch RUN (an id, a name or a folder) until it ends. Ctrl-C leaves; the run goes on.

    \b
    dtrain attach storyteller
    dtrain attach me@gpu1:20261123-191500-k3f9

    The second form is for a run that another machine started over SSH, or on a cluster through its login node: it
    becomes known here, and status, logs, stop, resume and fetch then find it by its id.

    The exit code is the run's once it has ended, 0 when you leave before.
    """
    from dtrain.launch import adopt, begin, registry
    from dtrain.show.console import console_for
    from dtrain.show.report import print_end
    from dtrain.show.watch import attend

    console = console_for(False)
    entry = adopt.adopt(run, Path.cwd() / "runs") if adopt.is_elsewhere(run) else registry.find(run)
    code = attend(entry, console)
    if code is None:
        console.print(f"The run goes on. dtrain stop {entry.id} stops it; it saves first.", markup=False)
        return
    print_end(entry, begin.status(entry), console)
    sys.exit(code)
