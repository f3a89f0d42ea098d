"""Bandwidth of saving and loading a checkpoint, beside the disk's own and DeepSpeed's, in one run on one machine.

    python -m torch.distributed.run --nproc-per-node 2 -m benchmarks.checkpoint FOLDER --json FILE

A Llama of random weights, ZeRO stage 2, AdamW: fp32 master weights and two moments, 12 bytes a parameter. Everything is
fsynced, DeepSpeed's files too (it does not do so itself), and the page cache is emptied of a file before it is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dtrain.files import sync_file
from dtrain.paths import RunPaths
from dtrain.train import checkpoint, restore
from dtrain.train import ranks as ranks_of
from dtrain.train.loop import Progress
from dtrain.train.partitions import take_over
from dtrain.train.saver import Saver

BLOCK = bytes(16 * 2**20)


def engine_of(hidden: int, layers: int) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=8, vocab_size=4096,
    ))  # fmt: skip
    told = {
        "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True,
        "data_types": {"grad_accum_dtype": "fp32"},
    }  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    engine, optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=told)
    ids = torch.zeros((1, 8), dtype=torch.int64)
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()  # the moments are there
    return engine, optimizer


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sync_below(folder: Path) -> None:
    for path in files_below(folder):
        sync_file(path)


def forget_cached(folder: Path) -> None:
    """Drop what the page cache has of these files."""
    for path in files_below(folder):
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def write_raw(path: Path, size: int) -> None:
    """As fast as this disk takes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for _ in range(size // len(BLOCK)):
        os.write(handle, BLOCK)
    os.fsync(handle)
    os.close(handle)


def read_raw(path: Path) -> None:
    with path.open("rb", buffering=0) as stream:
        buffer = bytearray(len(BLOCK))
        while stream.readinto(buffer):
            pass


class Bench:
    """Times of all ranks together: a barrier before, a barrier after."""

    def __init__(self, ranks: ranks_of.Ranks) -> None:
        self.ranks = ranks
        self.seconds: dict[str, list[float]] = {}

    def time(self, name: str, call: Callable[[], Any]) -> None:
        self.ranks.wait()
        started = time.perf_counter()
        call()
        self.ranks.wait()
        self.seconds.setdefault(name, []).append(time.perf_counter() - started)


def one_round(bench: Bench, folder: Path, engine: Any, saver: Saver, number: int, size: int) -> None:
    raw, theirs, ranks = folder / "raw", folder / "deepspeed", bench.ranks
    bench.time("disk write", lambda: write_raw(raw / f"{ranks.rank}", size // ranks.world))
    bench.time("dtrain stands still", lambda: saver.save(Progress(step=number)))
    bench.seconds.setdefault("dtrain in the background", []).append(saver.wait().seconds)  # type: ignore[union-attr]

    def deepspeed_saves() -> None:
        engine.save_checkpoint(str(theirs), tag="one")
        ranks.wait()
        if ranks.is_first:
            sync_below(theirs)

    bench.time("deepspeed save", deepspeed_saves)
    for place in (raw, theirs, saver.paths.checkpoints):
        forget_cached(place)
    bench.time("disk read", lambda: read_raw(raw / f"{ranks.rank}"))

    bench.time("dtrain load", lambda: restore.newest(saver.states, saver.paths, ranks))
    bench.time("dtrain load, the exchange of weights in it", lambda: take_over(saver.states.optimizer))
    forget_cached(theirs)
    bench.time("deepspeed load", lambda: engine.load_checkpoint(str(theirs), tag="one"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, required=True)
    told = parser.parse_args()
    ranks = ranks_of.join(ranks_of.from_environment())
    engine, optimizer = engine_of(told.hidden, told.layers)
    states = checkpoint.States(engine.module, optimizer, 2)
    saver = Saver(states, RunPaths(told.folder / "run"), ranks, checkpoint.Keep(last=1), {}, print)
    parameters = sum(parameter.numel() for parameter in engine.module.parameters())
    bench = Bench(ranks)
    for number in range(1, told.rounds + 1):
        one_round(bench, told.folder, engine, saver, number, 12 * parameters)
    if ranks.is_first:
        shutil.rmtree(told.folder, ignore_errors=True)
        told.json.write_text(json.dumps(report(bench, parameters, ranks.world, told.rounds), indent=2) + "\n")
    ranks.wait()


def report(bench: Bench, parameters: int, world: int, rounds: int) -> dict[str, Any]:
    """Medians over the rounds but the first, which pays for the first touch of memory."""
    size = 12 * parameters / 2**30
    medians = {name: statistics.median(seconds[1:] or seconds) for name, seconds in bench.seconds.items()}
    return {
        "schema_version": 1, "parameters": parameters, "checkpoint_gib": round(size, 3), "ranks": world,
        "rounds": rounds,
        "machine": platform.platform(), "load_average": [round(load, 1) for load in os.getloadavg()],
        "torch": torch.__version__, "deepspeed": deepspeed.__version__,
        "median_seconds": {name: round(seconds, 3) for name, seconds in medians.items()},
        "gib_per_second": {name: round(size / seconds, 3) for name, seconds in medians.items()},
        "note": "deepspeed also writes the 16-bit or fp32 weights beside the masters: more bytes than checkpoint_gib",
    }  # fmt: skip


if __name__ == "__main__":
    main()
