"""`dtrain config show|check|schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dtrain.cli.options import file_argument, json_option, profile_option, set_option

if TYPE_CHECKING:
    from dtrain.config.load import Loaded


@click.group(
    "config",
    invoke_without_command=True,
    epilog="Example: dtrain config show configs/storyteller.yaml --set num_epochs=1",
)
@click.pass_context
def command(context: click.Context) -> None:
    """Show, check and describe a config file.

    \b
    show    each effective value and where it was said: file:line, flag or default
    check   "ok", or every error of the file at once, with line, nearest key and fix
    schema  the JSON Schema, for completion and checks while you type in an editor
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command("show", epilog="Example: dtrain config show configs/storyteller.yaml --set micro_batch_size=2")
@file_argument
@set_option
@json_option
@profile_option()
def show(file: Path, sets: tuple[str, ...], as_json: bool, profile: str | None) -> None:
    """Each effective value of FILE with its origin; with --profile, also what the planner chooses for what is open."""
    from dtrain.config.load import load
    from dtrain.show.config import config_json, print_config

    loaded = load(file, sets)
    planned = _planned(loaded, profile) if profile is not None else {}
    if as_json:
        click.echo(json.dumps(config_json(loaded, planned), indent=2, ensure_ascii=False))
    else:
        print_config(loaded, planned)


def _planned(loaded: Loaded, profile: str) -> dict[str, Any]:
    from dtrain.hardware.profiles import resolve_profile
    from dtrain.models.hub import load_facts
    from dtrain.planner.plan import make_plan

    return make_plan(loaded, resolve_profile(profile), load_facts(loaded.config.base_model)).choice.as_json()


@command.command("check", epilog="Example: dtrain config check my.yaml && dtrain launch my.yaml --profile cpu")
@file_argument
@set_option
@json_option
def check(file: Path, sets: tuple[str, ...], as_json: bool) -> None:
    """Every error of FILE at once (exit 2), or ok."""
    from dtrain.config.load import load
    from dtrain.show.config import print_notes

    loaded = load(file, sets)
    if as_json:
        document = {"schema_version": 1, "ok": True, "file": str(file), "notes": list(loaded.notes)}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        print_notes(loaded.notes)
        click.echo("ok")


@command.command("schema", epilog="Example: dtrain config schema > dtrain.schema.json")
@json_option
def schema(as_json: bool) -> None:
    """The JSON Schema of a config file, other names of keys included. It is always JSON.

    First line of a YAML, for editors that know yaml-language-server:

    \b
    # yaml-language-server: $schema=dtrain.schema.json
    """
    from dtrain.config.document import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
