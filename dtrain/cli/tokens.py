"""`dtrain tokens TEXT|FILE`: counts per tokenizer."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from dtrain.cli.options import json_option
from dtrain.cli.parts import require_train


@click.command("tokens")
@click.argument("text_or_file", metavar="TEXT|FILE")
@click.option(
    "--tokenizer", "tokenizers", metavar="NAME|FOLDER", multiple=True, required=True, help="Which; repeatable."
)
@json_option
def command(text_or_file: str, tokenizers: tuple[str, ...], as_json: bool) -> None:
    """How many tokens a text, a text file or a data file has with one or more tokenizers.

    Data files (json, jsonl, parquet, csv) are counted over every text in every row.

    \b
    dtrain tokens "A storm over the harbour." --tokenizer gpt2
    dtrain tokens stories.jsonl --tokenizer TinyLlama/TinyLlama-1.1B-Chat-v1.0 --tokenizer ./my-model
    """
    require_train("dtrain tokens", ("transformers", "datasets", "tokenizers"))
    from dtrain.data.count import count_tokens
    from dtrain.show.preview import print_token_counts

    counts = [count_tokens(text_or_file, tokenizer) for tokenizer in tokenizers]
    if as_json:
        found = [{**asdict(one), "characters_per_token": one.characters_per_token} for one in counts]
        click.echo(json.dumps({"schema_version": 1, "counts": found}, indent=2))
    else:
        print_token_counts(counts)
