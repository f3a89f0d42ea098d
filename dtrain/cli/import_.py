"""`dtrain import FILE`: an Axolotl YAML in our words."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dtrain.cli.options import file_argument, json_option, set_option
from dtrain.errors import BadInput


@click.command("import", epilog="Example: dtrain import axolotl.yml --output mine.yaml")
@file_argument
@set_option
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the YAML there, not to stdout."
)
@json_option
def command(file: Path, sets: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Read an Axolotl YAML: what it would have lost in silence, and the same run in dtrain's words.

    The losses and notes go to stderr, the YAML to stdout or --output. dtrain also reads Axolotl files as they are;
    this command is to see what they really say.
    """
    from dtrain.config.importing import from_axolotl
    from dtrain.show.config import imported_json, print_losses

    imported = from_axolotl(file, sets)
    if output is not None:
        _write(output, imported.config)
    if as_json:
        click.echo(json.dumps(imported_json(imported), indent=2, ensure_ascii=False))
        return
    print_losses(imported, str(file))
    if output is None:
        click.echo(imported.config, nl=False)


def _write(output: Path, text: str) -> None:
    from dtrain.files import write_whole

    if output.exists():
        raise BadInput("the file is there already", file=str(output), fix="name another file with --output")
    write_whole(output, text)
