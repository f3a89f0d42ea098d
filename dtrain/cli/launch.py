"""`dtrain launch FILE --profile P`: the whole road, from a YAML to a trained model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dtrain.cli.options import file_argument, json_option, profile_option, set_option
from dtrain.errors import DoesNotFit, DtrainError

if TYPE_CHECKING:
    from rich.console import Console

    from dtrain.launch.api import HandsOver
    from dtrain.launch.draft import Draft, Planned
    from dtrain.launch.registry import Entry
    from dtrain.show.watch import Watched


@click.command("launch")
@file_argument
@profile_option(default="auto")
@click.option("--on", "on", metavar="LAUNCHER", default="local", show_default=True, help="Where it runs.")
@click.option("--dry-run", is_flag=True, help="Stop after the plan: show exactly what would be written and run.")
@click.option(
    "--probe", is_flag=True, help="First measure two steps at the longest batch beside the plan; they are undone."
)
@click.option("--no-bias", is_flag=True, help="Plan without what earlier runs on this machine have shown.")
@click.option("--detach", is_flag=True, help="Start it and return; `dtrain attach` watches it later.")
@click.option("--name", metavar="N", help="The run's name; default: the config's, else the file's.")
@click.option("--yes", is_flag=True, help="Do not ask before something that costs money.")
@click.option("--max-cost", metavar="USD", type=click.FloatRange(0, min_open=True), help="Rented: never cost more.")
@click.option("--max-hours", metavar="H", type=click.FloatRange(0, min_open=True), help="Rented: never take longer.")
@click.option("--anywhere", is_flag=True, help="Rented: without capacity there, the next cheapest region or provider.")
@click.option("--no-watchdog", is_flag=True, help="Rented: even where nothing ends the machine when nobody is there.")
@set_option
@json_option
def command(
    file: Path,
    profile: str,
    on: str,
    dry_run: bool,
    probe: bool,
    no_bias: bool,
    detach: bool,
    name: str | None,
    yes: bool,
    max_cost: float | None,
    max_hours: float | None,
    anywhere: bool,
    no_watchdog: bool,
    sets: tuple[str, ...],
    as_json: bool,
) -> None:
    """Plan it, start it, watch it, and show what came of it.

    \b
    dtrain launch configs/storyteller-tiny.yaml --profile cpu
    dtrain launch my.yaml --profile a100x8 --dry-run
    dtrain launch my.yaml --profile auto --probe
    dtrain launch my.yaml --profile 4090x1 --detach --set learning_rate=1e-4
    dtrain launch my.yaml --profile a100x8 --on aws --max-cost 40 --max-hours 4

    Ctrl-C asks the run to save and stop (exit code 75; `dtrain resume` goes on); a second Ctrl-C ends it at once (130).
    The exit code is the run's: 0 done, 1 failed, 2 bad input, 3 it does not fit.
    """
    from dtrain.launch.api import HandsOver
    from dtrain.launch.draft import draft, planned
    from dtrain.show.console import console_for
    from dtrain.show.watch import Interrupts, Watched, observer_of

    console = console_for(as_json)
    sets = (*sets, *_rented_sets(on, max_cost, max_hours, anywhere, no_watchdog), *(["probe=true"] if probe else []))
    made = planned(file, sets, profile, on, with_bias=not no_bias)
    _show_plan(made, console, as_json)
    drafted = draft(made, on, name)
    if dry_run:
        _dry_run(made, drafted, console, as_json)
        return
    _refuse_unready(drafted)
    if drafted.rendered.usd_per_hour and not yes:
        _confirm(drafted)
    _create(drafted)
    with Interrupts() as interrupts:  # from here on Ctrl-C is for the run
        entry = _submit(drafted)
        if isinstance(drafted.launcher, HandsOver):
            _handed_over(entry, drafted.launcher, console, as_json)
            return
        if not detach:
            sys.exit(watched(Watched(entry, drafted.launcher, observer_of(entry), interrupts), console, as_json))
    _detached(drafted, console, as_json)


def _show_plan(made: Planned, console: Console, as_json: bool) -> None:
    """The plan on the screen; DoesNotFit when it does not."""
    from dtrain.show.plan import print_plan

    ways = made.ways_out()
    print_plan(made.plan, ways, console=console)
    if made.plan.accepted:
        return
    plan = made.plan
    error = DoesNotFit(
        plan.reasons[0],
        key="--profile",
        value=plan.profile.name,
        fix="take one of the ways out above" if ways else "take a larger machine: dtrain profiles",
    )
    if as_json:
        document = {"error": error.as_json(), "plan": plan.as_json(), "ways_out": [way.as_json() for way in ways]}
        click.echo(json.dumps({"schema_version": 1, **document}, indent=2, default=str))
        sys.exit(error.exit_code)
    raise error


def _dry_run(made: Planned, drafted: Draft, console: Console, as_json: bool) -> None:
    from dtrain.launch.begin import problems_of
    from dtrain.show.launching import print_dry_run

    problems = problems_of(drafted.launcher, drafted.job)
    if not as_json:
        print_dry_run(drafted, problems, console)
        return
    document = {"dry_run": True, "plan": made.plan.as_json(), **drafted.as_json(), "would_be_refused": problems}
    click.echo(json.dumps({"schema_version": 1, **document}, indent=2))


def _rented_sets(
    on: str, max_cost: float | None, max_hours: float | None, anywhere: bool, no_watchdog: bool
) -> list[str]:
    """The flags as `launchers.NAME` has them: a launcher that rents nothing refuses them."""
    told = {"max_cost": max_cost, "max_hours": max_hours}
    sets = [f"launchers.{on}.{key}={value!r}" for key, value in told.items() if value is not None]
    return sets + [f"launchers.{on}.anywhere=true"] * anywhere + [f"launchers.{on}.watchdog=false"] * no_watchdog


def _confirm(drafted: Draft) -> None:
    """What, where, how much; Abort unless the person says yes."""
    for note in drafted.rendered.notes:
        click.echo(note, err=True)
    click.confirm(f"This costs ${drafted.rendered.usd_per_hour:.2f} an hour. Start it?", abort=True, err=True)


def _refuse_unready(drafted: Draft) -> None:
    from dtrain.launch.begin import refuse_unready

    refuse_unready(drafted.launcher, drafted.job)


def _create(drafted: Draft) -> None:
    """Write the run's folder."""
    from dtrain.launch.create import create

    create(drafted.folder, drafted.files)


def _submit(drafted: Draft) -> Entry:
    """Start it. A refusal leaves nothing behind."""
    from dtrain.launch import begin
    from dtrain.launch.create import discard
    from dtrain.paths import RunPaths

    try:
        return begin.submit(drafted.launcher, drafted.job, drafted.rendered, drafted.entry)
    except begin.NOTHING_STARTED:
        discard(RunPaths(drafted.folder))
        raise


def _detached(drafted: Draft, console: Console, as_json: bool) -> None:
    from dtrain.launch.api import Status
    from dtrain.show.launching import print_started
    from dtrain.show.runs import run_json

    if as_json:
        document = {"schema_version": 1, **run_json(drafted.entry, Status("running"))}
        click.echo(json.dumps(document, indent=2))
        return
    print_started(drafted, console)


def _handed_over(entry: Entry, launcher: HandsOver, console: Console, as_json: bool) -> None:
    from dtrain.launch.api import Status
    from dtrain.show.launching import print_next_steps
    from dtrain.show.runs import run_json

    steps = launcher.next_steps(entry.submitted())
    print_next_steps(entry, steps, console)
    if as_json:
        document = {**run_json(entry, Status("pending")), "next_steps": list(steps)}
        click.echo(json.dumps({"schema_version": 1, **document}, indent=2))


def watched(run: Watched, console: Console, as_json: bool) -> int:
    """Watch it to its end, say how it ended, and give the exit code."""
    from dtrain.launch import begin
    from dtrain.show.report import print_end
    from dtrain.show.watch import watch

    code = watch(run, console)
    print_end(run.entry, begin.status(run.entry), console)
    if as_json:
        click.echo(json.dumps(end_json(run.entry, code), indent=2, default=str))
    return code


def end_json(entry: Entry, code: int) -> dict[str, Any]:
    """The run, its end, its report; with `error` where it failed."""
    from dtrain.launch import begin
    from dtrain.launch.ending import read_or_none
    from dtrain.paths import RunPaths
    from dtrain.show.report import failure_of, samples
    from dtrain.show.runs import run_json

    status, paths = begin.status(entry), RunPaths(begin.folder_of(entry))
    document = {"schema_version": 1, **run_json(entry, status), "exit": read_or_none(paths.exit)}
    document |= {
        "report": read_or_none(paths.report),
        "samples": [{"prompt": prompt, "text": text} for prompt, text in samples(paths)],
    }
    if code not in (0, 75, 130):
        error: DtrainError = failure_of(paths, status)
        document["error"] = error.as_json()
    return document
