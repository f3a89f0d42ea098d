"""`dtrain export RUN [FOLDER]`: a Hugging Face folder from a run's checkpoint."""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import click

from dtrain.cli.options import json_option
from dtrain.cli.parts import require_train
from dtrain.errors import BadInput
from dtrain.files import read_json
from dtrain.paths import RunPaths


@click.command("export")
@click.argument("run")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--step", type=click.IntRange(min=1), help="Which checkpoint; default: the newest good one.")
@click.option("--merge", is_flag=True, help="An adapter is merged into its base model, in full precision.")
@json_option
def command(run: str, folder: Path | None, step: int | None, merge: bool, as_json: bool) -> None:
    """Write the model of a checkpoint of RUN into FOLDER (default: RUN's folder/export-STEP), checked by a reload.

    An adapter is written as an adapter, or with --merge as a model of its own, its logits compared before and after.

    \b
    dtrain export storyteller
    dtrain export storyteller ./my-model --step 200
    """
    require_train("dtrain export")
    with redirect_stdout(sys.stderr):  # DeepSpeed greets on stdout
        out, done = _exported(run, folder, step, merge)
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "folder": str(out), "step": done}, indent=2))
        return
    click.echo(f"{out}  (step {done})")


def _exported(run: str, folder: Path | None, step: int | None, merge: bool) -> tuple[Path, int]:
    """The folder that was written, and of which step."""
    from dtrain.cli.model_folder import config_of, export_folder, holds_model
    from dtrain.launch import registry
    from dtrain.train import checkpoint
    from dtrain.train import merge as merging
    from dtrain.train.export_checkpoint import Source, export_checkpoint

    paths = RunPaths(Path(registry.find(run).folder))
    config = config_of(paths.output)
    found, damaged = checkpoint.newest_good(paths) if step is None else checkpoint.at_step(paths, step)
    for line in damaged:
        click.echo(f"passed over: {line}", err=True)
    if found is None or config is None:
        there = sorted(checkpoint.step_of(one) for one in paths.checkpoints.glob("step-*"))
        words = "there is no such checkpoint" if there else "this run has saved no checkpoint"
        fix = None if there else f"dtrain status {run}"
        raise BadInput(words, file=str(paths.checkpoints), key="--step", value=step, allowed=there or None, fix=fix)
    if merge and config.adapter is None:
        raise BadInput("this run trained no adapter: there is nothing to merge", key="--merge", fix="leave --merge out")
    out = folder or export_folder(paths.output, found.step, merge)
    if holds_model(out):
        raise BadInput("there is a model in this folder", file=str(out), fix="name another folder")
    precision, data = read_json(paths.plan)["choice"]["precision"], read_json(paths.data)
    source = Source(found.folder, config, precision, Path(data["tokenizer"]), data.get("stop_tokens", ()))
    if merge:
        with tempfile.TemporaryDirectory() as beside:
            export_checkpoint(source, Path(beside))
            merging.merge(Path(beside), out)
    else:
        export_checkpoint(source, out)
    return out, found.step
