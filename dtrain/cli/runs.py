"""`dtrain runs`: what was started from here."""

from __future__ import annotations

import json

import click

from dtrain.cli.options import json_option


@click.command("runs")
@click.option("--refresh", is_flag=True, help="Ask the launchers about runs whose folder cannot tell.")
@json_option
def command(refresh: bool, as_json: bool) -> None:
    """List the runs, newest first. An id, the beginning of one, or a name is what other commands take as RUN.

    \b
    dtrain runs
    dtrain runs --json | jq '.runs[] | select(.state == "running") | .id'
    """
    from dtrain.launch import begin, registry
    from dtrain.show.console import console_for
    from dtrain.show.runs import print_runs, run_json

    entries, broken = registry.entries()
    runs, problems = begin.refreshed(entries) if refresh else (begin.as_last_seen(entries), [])
    if as_json:
        document = {
            "schema_version": 1,
            "runs": [run_json(entry, status) for entry, status in runs],
            "broken": [{"file": str(one.path), "why": one.why} for one in broken],
            "problems": problems,
        }
        click.echo(json.dumps(document, indent=2))
        return
    print_runs(runs, broken, console_for(False), problems)
