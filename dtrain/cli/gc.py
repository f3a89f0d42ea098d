"""`dtrain gc`: machines that cost money and that no live run owns."""

from __future__ import annotations

import json
import sys

import click

from dtrain.cli.options import json_option


@click.command("gc")
@click.argument("run", required=False)
@click.option("--dry-run", is_flag=True, help="Only list them.")
@json_option
def command(run: str | None, dry_run: bool, as_json: bool) -> None:
    """Find rented machines that nobody keeps any more, bring home what they made, and end them.

    \b
    dtrain gc --dry-run
    dtrain gc
    dtrain gc 20261123-191500-k3f9

    A run that still trains is stopped with a checkpoint first, and its results come home before its machine goes. A
    machine that was started from another computer is only listed; naming its RUN ends it, too. Exit code 6 when a
    machine is still there afterwards.
    """
    from dtrain.cloud.collect import collect, survey
    from dtrain.errors import DtrainError, StillBilled
    from dtrain.show.console import console_for
    from dtrain.show.rentals import print_survey

    console = console_for(as_json)
    found = survey(run)
    print_survey(found, console)
    told, code = [], 0
    for stray in found.strays:
        outcome: dict[str, object] = {**stray.as_json(), "outcome": None, "error": None}
        if not dry_run:
            try:
                words = collect(stray, run is not None, lambda line: console.print(f"  {line}", markup=False))
                outcome["outcome"] = words
                console.print(f"{stray.run_id}: {words}", markup=False, highlight=False)
            except DtrainError as error:
                code = max(code, StillBilled.exit_code)
                outcome["error"] = error.as_json()
                console.print(f"{stray.run_id}: {error}", markup=False, highlight=False, style="red")
        told.append(outcome)
    if as_json:
        document = {
            "schema_version": 1, "dry_run": dry_run, "runs": told, "asked": list(found.asked),
            "problems": list(found.problems), "without_credentials": list(found.without_credentials),
        }  # fmt: skip
        click.echo(json.dumps(document, indent=2))
    sys.exit(code)
