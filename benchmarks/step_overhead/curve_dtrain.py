"""dtrain's side of the loss curves: `python -m benchmarks.step_overhead.curve_dtrain FOLDER` writes dtrain.json.

Also leaves what TRL's side starts from: the model with its first weights, and the tokenizer of each kind of rows.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.step_overhead.curves import CURVES, MICRO_BATCH_SIZE, SETTINGS, STEPS, WINDOW, Curve
from benchmarks.step_overhead.dtrain_loop import choice_of, join, training
from dtrain.config.schema import Config
from dtrain.data.prepare import prepare
from dtrain.data.schedule import make_schedule
from dtrain.planner.setup import ZeroBuckets
from dtrain.train import engine
from dtrain.train.loop import Progress, train
from dtrain.train.lr import LearningRate
from dtrain.train.model import load_model
from dtrain.train.ranks import Ranks

VOCABULARY = 2048
TYPES = {"alpaca": "alpaca", "messages": "chat_template"}


def write_model(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=VOCABULARY, max_position_embeddings=WINDOW, tie_word_embeddings=False,
        )
    ).save_pretrained(folder)  # fmt: skip


def config_of(folder: Path, curve: Curve) -> Config:
    return Config.model_validate({
        "base_model": str(folder / "model"), "sequence_len": WINDOW, "shuffle": False, "logging_steps": 1,
        "datasets": [{"path": str(folder / f"{curve.kind}.jsonl"), "type": TYPES[curve.kind]}],
        "chat_template": "chatml" if curve.kind == "messages" else None,
        "train_tokenizer": {"vocab_size": VOCABULARY}, "val_set_size": 0, "optimizer": "adamw_torch", **SETTINGS,
    })  # fmt: skip


def losses_of(folder: Path, curve: Curve, ranks: Ranks) -> dict[str, Any]:
    config = config_of(folder, curve)
    prepared = prepare(config, cache_root=folder / "cache")
    shutil.copytree(prepared.tokenizer_folder, folder / f"tokenizer-{curve.kind}", dirs_exist_ok=True)
    choice, rows = choice_of(config, 0, MICRO_BATCH_SIZE, curve.accumulation, ranks.world), prepared.train
    told = engine.deepspeed_config(config, choice, 10**9, ZeroBuckets())
    model = load_model(config, choice, folder / "model", VOCABULARY, choice.attention, told)
    schedule = make_schedule(
        rows.lengths, rows.trained, window=WINDOW, packing=False, shuffle=False, seed=0, world=ranks.world,
        micro_batch_size=MICRO_BATCH_SIZE, accumulation=curve.accumulation, epochs=1, max_steps=STEPS,
    )  # fmt: skip
    rate = LearningRate(config.learning_rate, "cosine", STEPS, int(SETTINGS["warmup_steps"]))
    lines: list[dict[str, Any]] = []
    train(training(config, choice, model, ranks, rows, schedule, rate, log=lines.append), Progress())
    return {
        "losses": [line["loss"] for line in lines],
        "input_ids": [rows.ids(row).tolist() for row in range(len(rows))],
        "labels": [rows.labels(row).tolist() for row in range(len(rows))],
    }


def main(folder: Path) -> None:
    write_model(folder / "model")
    ranks = join()
    told = {curve.name: losses_of(folder, curve, ranks) for curve in CURVES}
    (folder / "dtrain.json").write_text(json.dumps(told))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
