"""`dtrain rent FILE`: where to rent, for how long, for how much."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from dtrain.cli.options import file_argument, json_option, set_option


@click.command("rent")
@file_argument
@click.option("--within", metavar="TIME", help="Only machines that are done by then: 24h, 90m, 2d.")
@click.option("--max-cost", metavar="USD", type=click.FloatRange(min=0), help="Only runs that cost at most this.")
@click.option(
    "--price", "prices", metavar="PROVIDER:MACHINE=USD", multiple=True,
    help="A price per hour you know better than the table. Repeatable.",
)  # fmt: skip
@set_option
@json_option
def command(
    file: Path,
    within: str | None,
    max_cost: float | None,
    prices: tuple[str, ...],
    sets: tuple[str, ...],
    as_json: bool,
) -> None:
    """Every machine that can run FILE: what would be chosen there, hours, dollars, cheapest first.

    \b
    dtrain rent configs/storyteller.yaml
    dtrain rent my.yaml --within 24h --max-cost 50
    dtrain rent my.yaml --price "lambda:8x H100 SXM=27.50"

    Prices are a dated table that ships with dtrain; each row says when and where it was read. ◆ marks the
    machines that nothing beats in both time and money. Exit code 3 when no machine can run it, or none
    within your limits.
    """
    from dtrain.config.load import load
    from dtrain.models.hub import load_facts
    from dtrain.planner.rent import Limits, hours_of, rent, repriced, shortfall

    limits = Limits(None if within is None else hours_of(within), max_cost)
    table = repriced(prices)
    loaded = load(file, sets)
    facts = load_facts(loaded.config.base_model, revision=loaded.config.revision_of_model, config_dir=file.parent)
    told = rent(loaded, facts, limits, table)
    error = shortfall(told)
    if as_json:
        click.echo(json.dumps(told.as_json() | ({"error": error.as_json()} if error else {}), indent=2))
        sys.exit(error.exit_code if error else 0)
    from dtrain.show.rent import print_rent

    print_rent(told)
    if error:
        raise error
