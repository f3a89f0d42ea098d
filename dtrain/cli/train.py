"""`dtrain train RUN_FOLDER`: what torchrun starts on each rank. People type `dtrain launch`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from dtrain.cli.parts import require_train


@click.command("train", help=__doc__)
@click.argument("run_folder", type=click.Path(path_type=Path))
def command(run_folder: Path) -> None:
    require_train("dtrain train", ("torch", "deepspeed", "transformers"))
    from dtrain.train.worker import main

    sys.exit(main(run_folder))
