"""Stands in for `dtrain train` and `dtrain.data.prepare` where only life and death matter: no torch, real signals.

`python stand_in.py worker RUN_FOLDER` keeps the worker's protocol: its own log, state.json and metrics.jsonl by
rank 0, SIGTERM = finish the step, save a checkpoint, leave with 75. STAND_IN_* variables say what it does wrong.
`python stand_in.py torchrun N COMMAND...` starts N ranks as torchrun does: own sessions, RANK in the environment.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    role, *rest = sys.argv[1:]
    return {"worker": worker, "prepare": prepare, "torchrun": torchrun}[role](rest)


def torchrun(arguments: list[str]) -> int:
    ranks = [
        subprocess.Popen(
            arguments[1:],
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": arguments[0]},
            start_new_session=True,
        )
        for rank in range(int(arguments[0]))
    ]
    if os.environ.get("STAND_IN_REAPS"):
        return reap(ranks)
    time.sleep(600)  # as with --monitor-interval: a dead rank is not reaped before
    return max(abs(rank.wait()) for rank in ranks)


def reap(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Torchrun that looks at the very moment a rank dies: its exit code is gone before the supervisor reads it."""
    while not any(rank.poll() for rank in ranks):
        time.sleep(0.001)
    time.sleep(0.3)
    return 1


def prepare(arguments: list[str]) -> int:
    run = Path(arguments[0]) / "dtrain"
    wait_for_file("STAND_IN_PREPARE_UNTIL")
    if os.environ.get("STAND_IN_PREPARE_FAILS"):
        error = {"code": 2, "message": "row 3 has no field 'output'", "file": "rows.jsonl", "line": 3, "fix": "add it"}
        write(run / "logs" / "prepare.error.json", error)
        return 2
    write(run / "data.json", {"cache": "nowhere"})
    return 0


def worker(arguments: list[str]) -> int:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    run, rank = Path(arguments[0]) / "dtrain", int(os.environ["RANK"])
    speak_into(run / "logs" / f"rank-{rank}.log")
    print(f"rank {rank} listens", flush=True)
    if os.environ.get("STAND_IN_GRANDCHILD"):
        subprocess.Popen(["sh", "-c", "setsid sleep 300 & sleep 300"])
    while not (run / "data.json").exists():
        if asked:
            return 75
        time.sleep(0.01)
    return train(run, rank, asked)


def train(run: Path, rank: int, asked: list[int]) -> int:
    steps = int(os.environ.get("STAND_IN_STEPS", "10"))
    first = max((int(path.name[5:]) for path in run.glob("checkpoints/step-*")), default=0)
    for step in range(first + 1, steps + 1):
        time.sleep(float(os.environ.get("STAND_IN_STEP_SECONDS", "0.01")))
        if step == steps:
            wait_for_file("STAND_IN_LAST_STEP_UNTIL")
        if rank == 0:
            log_step(run, step, steps)
        if os.environ.get("STAND_IN_FAILS") == f"{rank}@{step}":
            return fail(run, rank)
        if asked and not os.environ.get("STAND_IN_DEAF"):
            if rank == 0:
                print("rank 0 saves", flush=True)
                time.sleep(float(os.environ.get("STAND_IN_SAVE_SECONDS", "0")))
                wait_for_file("STAND_IN_SAVE_UNTIL")
                write(run / "checkpoints" / f"step-{step}" / "manifest.json", {"step": step})
            return 75
    if rank == 0:
        write(run / "state.json", {"stage": "done", "step": steps, "steps": steps, "time": time.time()})
    return 0


def wait_for_file(variable: str) -> None:
    """Until the file is there that this variable names, if it names one."""
    file = os.environ.get(variable)
    while file is not None and not os.path.exists(file):
        time.sleep(0.01)


def log_step(run: Path, step: int, steps: int) -> None:
    write(run / "state.json", {"stage": "training", "step": step, "steps": steps, "epoch": 0.1, "time": time.time()})
    line = {"step": step, "loss": 5 / step, "tokens_per_second": 1000.0, "tokens": 256, "tokens_seen": 256 * step}
    if step % 5 == 0:
        line["eval_loss"] = 6 / step
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({**line, "time": time.time()}) + "\n")


def fail(run: Path, rank: int) -> int:
    print("Traceback (most recent call last):\nRuntimeError: the stand-in was told to fail", flush=True)
    error = {"code": 1, "message": "RuntimeError: the stand-in was told to fail", "traceback": "Traceback: here"}
    write(run / "logs" / f"rank-{rank}.error.json", {**error, "time": time.time()})
    return 1


def speak_into(log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


def write(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(document))
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
