"""`dtrain preview FILE`: rows as the model will see them."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dtrain.cli.options import file_argument, json_option, set_option
from dtrain.cli.parts import require_train


@click.command("preview")
@file_argument
@set_option
@click.option("--rows", type=click.IntRange(min=0), default=3, show_default=True, help="How many rows to show.")
@json_option
def command(file: Path, sets: tuple[str, ...], rows: int, as_json: bool) -> None:
    """Rows of FILE's data as the model will see them: what is trained in colour, what is only read in grey.

    Tokenises as `dtrain launch` would, which then finds the work done. Says what was dropped and why.

    \b
    dtrain preview configs/storyteller-tiny.yaml
    dtrain preview my.yaml --rows 10 --set train_on_inputs=true
    dtrain preview my.yaml | less        trained text stands between ⟦ and ⟧
    """
    require_train("dtrain preview", ("transformers", "datasets", "tokenizers"))
    from dtrain.config.load import load
    from dtrain.data.look import see_rows
    from dtrain.data.prepare import prepare
    from dtrain.show.preview import preview_json, print_preview, progress

    config = load(file, sets).config
    prepared = prepare(config, config_dir=file.parent, say=progress)
    seen = see_rows(prepared, rows)
    if as_json:
        click.echo(json.dumps(preview_json(prepared, seen), indent=2, ensure_ascii=False))
    else:
        print_preview(prepared, seen)
