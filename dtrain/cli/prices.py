"""`dtrain prices` and `dtrain prices refresh`."""

from __future__ import annotations

import json

import click

from dtrain.cli.options import json_option


@click.group("prices", invoke_without_command=True)
@click.option("--gpu", metavar="NAME", help="Only this card: h100, a100-40gb, 4090.")
@json_option
@click.pass_context
def command(context: click.Context, gpu: str | None, as_json: bool) -> None:
    """What machines cost: the table that plans and `dtrain rent` read, with the day of each price.

    \b
    dtrain prices --gpu h100
    dtrain prices refresh             asks every provider whose credentials are here
    dtrain prices --json | jq '.prices[] | select(.provider == "runpod")'

    A table ships with dtrain. What `refresh` was told lies in your own data folder and comes before it.
    """
    if context.invoked_subcommand is not None:
        return
    from dtrain.hardware.prices import prices_of
    from dtrain.show.prices import prices_json, print_prices

    found = prices_of(gpu)
    if as_json:
        click.echo(json.dumps(prices_json(found), indent=2))
    else:
        print_prices(found)


@command.command("refresh", epilog="Example: RUNPOD_API_KEY=… dtrain prices refresh runpod")
@click.argument("provider", required=False)
@json_option
def refresh(provider: str | None, as_json: bool) -> None:
    """Ask the providers for their prices of today and keep them, dated. Nothing is rented.

    PROVIDER asks only one. A provider without credentials here is left out, one that fails is told, and the others go
    on; their older prices stay. Spot prices move within minutes and are not kept.
    """
    from dtrain import paths
    from dtrain.cloud import price_table
    from dtrain.show.console import console_for

    console = console_for(as_json)
    asked = price_table.refresh(provider, lambda words: console.print(words, markup=False, soft_wrap=True))
    if as_json:
        document = {"file": str(paths.own_prices()), "providers": [one.as_json() for one in asked]}
        click.echo(json.dumps({"schema_version": 1, **document}, indent=2))
        return
    console.print(f"kept in {paths.own_prices()}", markup=False, soft_wrap=True)
