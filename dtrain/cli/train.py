"""`dtrain train RUN_FOLDER`: what torchrun starts on each rank. People type `dtrain launch`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import click

from dtrain.errors import PartMissing


@click.command("train", help=__doc__)
@click.argument("run_folder", type=click.Path(path_type=Path))
def command(run_folder: Path) -> None:
    for part in ("torch", "deepspeed", "transformers"):
        if importlib.util.find_spec(part) is None:
            raise PartMissing.of(part, "train", "dtrain train")
    from dtrain.train.worker import main

    sys.exit(main(run_folder))
