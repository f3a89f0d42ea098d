"""From a started process to the first optimizer step: dtrain beside torchrun with a bare DeepSpeed program.

All on two CPU ranks with ZeRO 2 and the demo's model. `dtrain launch` is the whole typed command: it plans, starts a
supervisor, finds the tokenised data in the cache, starts torchrun. `dtrain ranks` is torchrun over its run folder, the
like of the bare program. On the way dtrain tests the attention and rehearses the longest batch; the bare program makes
up its batch.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.step_overhead.trials import ROOT

CONFIG = ROOT / "configs" / "storyteller-tiny.yaml"
MODEL = ROOT / "configs" / "tiny_llama"
CHANGES = ("max_steps=1", "val_set_size=0", "eval_steps=null", "save_steps=null", "sample_prompts=[]")


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


def dtrain_launch(folder: Path) -> float:
    """Seconds. Leaves its run as `folder/run`."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    sets = [word for change in (*CHANGES, f"output_dir={run}") for word in ("--set", change)]
    return _until_logged(
        (sys.executable, "-m", "dtrain", "launch", str(CONFIG), "--profile", "cpu", "--yes", *sets), run, folder
    )


def dtrain_ranks(folder: Path) -> float:
    """Seconds, over a copy of the run that `dtrain_launch` left."""
    again = folder / "again"
    shutil.rmtree(again, ignore_errors=True)
    for name in ("config.yaml", "plan.json", "data.json", "run.json", "launch.json"):
        (again / "dtrain").mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "run" / "dtrain" / name, again / "dtrain" / name)
    return _until_logged((*TORCHRUN, "dtrain", "train", str(again)), again, folder)


def bare_deepspeed(folder: Path) -> float:
    """Seconds."""
    out, started = folder / "bare", time.time()
    _call((*TORCHRUN, "benchmarks.step_overhead.bare_start", str(MODEL), str(out)), folder)
    return float(out.read_text()) - started


def _until_logged(command: Sequence[str], run: Path, folder: Path) -> float:
    """Seconds until the time that the first line of metrics.jsonl bears."""
    started = time.time()
    _call(command, folder)
    first = json.loads((run / "dtrain" / "metrics.jsonl").read_text().splitlines()[0])
    return float(first["time"]) - started


def _call(command: Sequence[str], folder: Path) -> None:
    environment = os.environ | {
        "DTRAIN_HOME": str(folder / "home"), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-5000:]}")


def measured(repetitions: int) -> dict[str, list[float]]:
    """Seconds by program, interleaved. One start of each before, so that caches are warm for both."""
    programs = {"dtrain launch": dtrain_launch, "dtrain ranks": dtrain_ranks, "bare DeepSpeed": bare_deepspeed}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as folder:
        for program in programs.values():
            program(Path(folder))
        for repetition in range(repetitions):
            for name, program in programs.items():
                seconds[name].append(program(Path(folder)))
            print(f"  first step: repetition {repetition + 1} of {repetitions}", file=sys.stderr, flush=True)
    return seconds
