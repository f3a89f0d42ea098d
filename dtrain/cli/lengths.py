"""`dtrain lengths FILE`: how long the rows are, and what each window cuts."""

from __future__ import annotations

import json
from pathlib import Path

import click

from dtrain.cli.options import file_argument, json_option, set_option
from dtrain.cli.parts import require_train


@click.command("lengths")
@file_argument
@set_option
@json_option
def command(file: Path, sets: tuple[str, ...], as_json: bool) -> None:
    """How long the rows of FILE's data are in tokens, and what each window (`sequence_len`) would cut.

    \b
    dtrain lengths configs/storyteller.yaml
    dtrain lengths my.yaml --set tokenizer_config=gpt2 --json
    """
    require_train("dtrain lengths", ("transformers", "datasets", "tokenizers"))
    from dtrain.config.load import load
    from dtrain.data.look import describe, row_lengths
    from dtrain.show.preview import print_lengths

    config = load(file, sets).config
    lengths = describe(row_lengths(config, file.parent), config.sequence_len)
    if as_json:
        document = {"schema_version": 1, "sequence_len": config.sequence_len, **lengths.as_json()}
        click.echo(json.dumps(document, indent=2))
    else:
        print_lengths(lengths, config.sequence_len)
