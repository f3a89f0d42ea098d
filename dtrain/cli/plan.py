"""`dtrain plan FILE --profile P`: every number before anything starts, without torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dtrain.cli.options import file_argument, json_option, profile_option, set_option

if TYPE_CHECKING:
    from dtrain.planner.plan import Plan
    from dtrain.planner.trace import TraceTerm


@click.command("plan")
@file_argument
@profile_option(default="auto")
@set_option
@click.option(
    "--trace", is_flag=True, help="Count the real model's tensors without a GPU (needs dtrain[train]; seconds)."
)
@json_option
def command(file: Path, profile: str, sets: tuple[str, ...], trace: bool, as_json: bool) -> None:
    """Does it fit, how fast, how long, what does it cost: told before a cent is spent.

    \b
    dtrain plan configs/storyteller.yaml --profile a100x8
    dtrain plan my.yaml --profile 4090x1 --set sequence_len=4096 --json

    Needs no GPU and no torch. Exit code 3 when it does not fit, with the nearest changes that would.
    """
    from dtrain.config.load import load
    from dtrain.hardware.profiles import resolve_profile
    from dtrain.models.hub import load_facts
    from dtrain.planner.nearest import ways_out
    from dtrain.planner.plan import make_plan

    loaded = load(file, sets)
    facts = load_facts(loaded.config.base_model, revision=loaded.config.revision_of_model, config_dir=file.parent)
    plan = make_plan(loaded, resolve_profile(profile), facts)
    ways = [] if plan.accepted else ways_out(plan, loaded, facts)
    terms = _traced(plan) if trace else []
    if as_json:
        document = plan.as_json()
        document |= {"ways_out": [way.as_json() for way in ways]} if ways else {}
        document |= {"trace": [term.as_json() for term in terms]} if trace else {}
        click.echo(json.dumps(document, indent=2))
    else:
        from dtrain.show.plan import print_plan

        print_plan(plan, ways, traced=terms)
    sys.exit(0 if plan.accepted else 3)


def _traced(plan: Plan) -> list[TraceTerm]:
    from dtrain.planner.trace import trace

    return trace(plan.candidate.setup, plan.facts.config)
