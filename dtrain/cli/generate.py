"""`dtrain generate RUN|FOLDER --prompt TEXT`: let a trained model write."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from dtrain.cli.options import json_option
from dtrain.cli.parts import require_train


@click.command("generate")
@click.argument("run")
@click.option("--prompt", "prompts", multiple=True, required=True, help="What to answer, in plain words. Repeatable.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True)
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: no chance at all."
)
@click.option("--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@json_option
def command(
    run: str, prompts: tuple[str, ...], max_new_tokens: int, temperature: float, top_p: float, seed: int, as_json: bool
) -> None:
    """Let the model of RUN (an id, a name, a run's folder, or any Hugging Face model folder) write.

    The prompt is put into the form the run was trained on.

    \b
    dtrain generate storyteller --prompt "A baker finds a lost dog."
    dtrain generate ./models/TinyLlama_Storyteller --prompt "A storm." --temperature 0.8
    """
    require_train("dtrain generate")
    from dtrain.cli.model_folder import config_of, find_model
    from dtrain.train import generate

    folder = find_model(run)
    config = config_of(folder)
    model, tokenizer = generate.read_model(folder), generate.read_tokenizer(folder)
    sampling = generate.Sampling(max_new_tokens, temperature, top_p, seed)
    written = [
        generate.write(model, tokenizer, generate.prompt_ids(config, tokenizer, prompt), prompt, sampling)
        for prompt in prompts
    ]
    if as_json:
        click.echo(
            json.dumps(
                {"schema_version": 1, "model": str(Path(folder)), "samples": [asdict(one) for one in written]}, indent=2
            )
        )
        return
    for one in written:
        click.echo(one.text)
        if not one.stopped:
            click.echo(f"… stopped at {one.tokens} tokens; --max-new-tokens takes more", err=True)
