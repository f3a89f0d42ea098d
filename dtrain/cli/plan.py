"""`dtrain plan FILE --profile P`: every number before anything starts, without torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from dtrain.cli.options import json_option, profile_option, set_option
from dtrain.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dtrain.config.origins import Loaded
    from dtrain.hardware.profiles import Profile
    from dtrain.planner.nearest import Way
    from dtrain.planner.plan import Plan
    from dtrain.planner.trace import TraceTerm


@click.command("plan")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@profile_option(default="auto")
@set_option
@click.option(
    "--trace", is_flag=True, help="Count the real model's tensors without a GPU (needs dtrain[train]; seconds)."
)
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write it as one page too, with the price of every other machine; it opens offline.",
)
@click.option("--verify", "run", metavar="RUN", help="Compare what RUN measured with its plan, instead of planning.")
@click.option("--no-bias", is_flag=True, help="Leave out what earlier runs on this machine have shown.")
@json_option
def command(
    file: Path | None,
    profile: str,
    sets: tuple[str, ...],
    trace: bool,
    page: Path | None,
    run: str | None,
    no_bias: bool,
    as_json: bool,
) -> None:
    """Does it fit, how fast, how long, what does it cost: told before a cent is spent.

    \b
    dtrain plan configs/storyteller.yaml --profile a100x8
    dtrain plan my.yaml --profile 4090x1 --set sequence_len=4096 --json
    dtrain plan my.yaml --profile h100x8 --html plan.html
    dtrain plan --verify storyteller --json

    Needs no GPU and no torch. Exit code 3 when it does not fit, with the nearest changes that would.
    """
    if run is not None:
        verify(run, as_json)
        return
    if file is None:
        raise BadInput("which file?", key="FILE", fix="dtrain plan configs/storyteller.yaml --profile a100x8")
    from dtrain.config.load import load
    from dtrain.hardware.profiles import resolve_profile
    from dtrain.models.hub import load_facts
    from dtrain.planner.measured import NO_BIAS, own_bias
    from dtrain.planner.nearest import ways_out
    from dtrain.planner.plan import make_plan, versions

    loaded = load(file, sets)
    machine = resolve_profile(profile)
    if trace and not is_counted(loaded, file):
        count_alone(loaded, machine, file, as_json)
    facts = load_facts(loaded.config.base_model, revision=loaded.config.revision_of_model, config_dir=file.parent)
    bias = NO_BIAS if no_bias else own_bias(machine, versions())
    plan = make_plan(loaded, machine, facts, bias=bias)
    ways = [] if plan.accepted else ways_out(plan, loaded, facts)
    terms = _traced(plan) if trace else []
    if page is not None:
        write_page(page, loaded, plan, ways)
    if as_json:
        document = plan.as_json()
        document |= {"ways_out": [way.as_json() for way in ways]} if ways else {}
        document |= {"trace": [term.as_json() for term in terms]} if trace else {}
        click.echo(json.dumps(document, indent=2))
    else:
        from dtrain.show.plan import print_plan

        print_plan(plan, ways, traced=terms)
    sys.exit(0 if plan.accepted else 3)


def is_counted(loaded: Loaded, file: Path) -> bool:
    """Whether dtrain has a closed form for the model's family."""
    from dtrain.models.hub import load_config
    from dtrain.models.read import FAMILIES, text_part

    said = loaded.config
    config, source = load_config(said.base_model, revision=said.revision_of_model, config_dir=file.parent)
    family = text_part(config, said.base_model, source).get("model_type")
    return family in FAMILIES or not isinstance(family, str)


def count_alone(loaded: Loaded, profile: Profile, file: Path, as_json: bool) -> NoReturn:
    """The trace without a plan, of a model dtrain does not know. Ends the process: 0 where a stage fits, else 3."""
    from dtrain.models.hub import load_config
    from dtrain.planner import uncounted
    from dtrain.show.plan import print_uncounted

    said = loaded.config
    config, _ = load_config(said.base_model, revision=said.revision_of_model, config_dir=file.parent)
    told = uncounted.count_alone(loaded, profile, config)
    if as_json:
        click.echo(json.dumps(told.as_json(), indent=2))
    else:
        print_uncounted(told)
    sys.exit(0 if any(told.fits(stage) for stage in told.by_stage) else 3)


def verify(run: str, as_json: bool) -> None:
    """What RUN measured beside its plan, as a row that can be sent. BadInput where it has not ended well."""
    from dtrain.files import read_json
    from dtrain.launch import begin, registry
    from dtrain.paths import RunPaths
    from dtrain.planner.measured import compared
    from dtrain.show.console import console_for
    from dtrain.show.verify import print_comparison

    entry = registry.find(run)
    paths = RunPaths(begin.folder_of(entry))
    if not paths.report.is_file():
        raise BadInput(
            "this run has no report: it has not ended, or not well", file=str(paths.report), key="--verify", value=run,
            fix=f"dtrain status {run}",
        )  # fmt: skip
    row = compared(read_json(paths.plan), read_json(paths.report), entry.id)
    if as_json:
        click.echo(json.dumps(row, indent=2))
        return
    print_comparison(row, console_for(False))


def write_page(page: Path, loaded: Loaded, plan: Plan, ways: Sequence[Way]) -> None:
    """The plan as one HTML file. BadInput where it cannot be written."""
    from dtrain.files import write_whole
    from dtrain.planner.rent import Limits, Rent, rent
    from dtrain.show.plan_page import plan_page

    market: Rent | str
    try:
        market = rent(loaded, plan.facts, Limits(), counts=plan.counts)
    except BadInput as refusal:  # of every machine that can be rented; the plan itself stands
        market = f"No machine of the price table can be planned for: {refusal.message}."
    try:
        write_whole(page, plan_page(plan, ways, market), durable=False)
    except OSError as error:
        raise BadInput(
            f"the page cannot be written: {error.strerror}", key="--html", value=str(page),
            fix="name a file in a folder you may write to",
        ) from None  # fmt: skip
    click.echo(f"page: {page}", err=True)


def _traced(plan: Plan) -> list[TraceTerm]:
    from dtrain.planner.trace import trace

    return trace(plan.candidate.setup, plan.facts.config)
