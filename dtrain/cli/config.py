"""`dtrain config show|check|schema`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dtrain.cli.options import file_argument, json_option, set_option


@click.group(
    "config",
    epilog="Example: dtrain config show configs/storyteller.yaml --set num_epochs=1",
)
def command() -> None:
    """Show, check and describe a config file.

    \b
    show    each effective value and where it was said: file:line, flag or default
    check   "ok", or every error of the file at once, with line, nearest key and fix
    schema  the JSON Schema, for completion and checks while you type in an editor
    """


@command.command("show", epilog="Example: dtrain config show configs/storyteller.yaml --set micro_batch_size=2")
@file_argument
@set_option
@json_option
def show(file: Path, sets: tuple[str, ...], as_json: bool) -> None:
    """Each effective value of FILE with its origin."""
    from dtrain.config.load import load
    from dtrain.show.config import config_json, print_config

    loaded = load(file, sets)
    if as_json:
        click.echo(json.dumps(config_json(loaded), indent=2, ensure_ascii=False))
    else:
        print_config(loaded)


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
