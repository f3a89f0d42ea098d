"""The `dtrain` command with stand-ins for the worker, the data preparation and (unless REAL_TORCHRUN) torchrun."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dtrain.cli.main import main
from dtrain.launch import spec
from dtrain.launch.api import Job

STAND_IN = str(Path(__file__).with_name("stand_in.py"))


def use_stand_ins() -> None:
    spec.prepare_command = lambda folder: (sys.executable, STAND_IN, "prepare", folder)
    spec.worker_arguments = lambda folder: (STAND_IN, "worker", folder)
    if not os.environ.get("REAL_TORCHRUN"):
        spec.torchrun_command = quick_torchrun


def quick_torchrun(job: Job, port: int | None = None) -> tuple[str, ...]:
    worker = (sys.executable, STAND_IN, "worker", str(job.folder))
    return (sys.executable, STAND_IN, "torchrun", str(job.ranks_per_node), *worker)


if __name__ == "__main__":
    use_stand_ins()
    main()
