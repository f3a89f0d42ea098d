"""What torchrun starts in the tests of the training road: many small cases in one start, one JSON line for each.

    torchrun --nproc-per-node 2 -m tests.train.cases FOLDER CASES.json

A case trains a tiny random Llama on random rows for a few steps, exactly as `dtrain.train.run` builds it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from dtrain.config.schema import Config
from dtrain.data.schedule import MicroBatch, Schedule, eval_batches, make_schedule
from dtrain.errors import BadInput
from dtrain.paths import RunPaths
from dtrain.planner.choice import Choice
from dtrain.planner.setup import ZeroBuckets
from dtrain.train import attention, checkpoint, engine, export, optimizers, restore, tiled_mlp
from dtrain.train import ranks as ranks_of
from dtrain.train.loop import Progress, Training, train
from dtrain.train.loss import LossModel, share_head_with_zero3
from dtrain.train.loss_watch import LossWatch
from dtrain.train.lr import LearningRate
from dtrain.train.memory import PeakMemory
from dtrain.train.model import DTYPES, decide_layout, load_model
from dtrain.train.partitions import undo_dry_step
from dtrain.train.probe import probe
from dtrain.train.saver import Saver
from dtrain.train.sequence_parallel import over_ranks, shard_of
from dtrain.train.tensor_parallel import mark_parts
from tests.train import shared_attention

WINDOW = 64
VOCAB = 256
LEARNING_RATE = 1e-2
SEED = 7


@dataclass(frozen=True)
class Case:
    name: str
    zero_stage: int = 0
    micro_batch_size: int = 8
    accumulation: int = 1
    steps: int = 6
    packing: bool = False
    precision: str = "fp32"
    master_weights: str = "fp32"
    checkpointing: str = "none"
    optimizer: str = "adamw_torch"
    offload: str = "none"
    layout: str = "flat"
    cross_entropy: str = "chunked"
    attention: str = "sdpa"
    sequence_parallel: int = 1
    tensor_parallel: int = 1
    family: str = "llama"
    leaks: bool = False
    """Attention is not told of documents."""
    rows: int = 50
    save_at: int | None = None
    """Write a checkpoint after this step, into `folder`."""
    load: bool = False
    """Start from the newest checkpoint of `folder`."""
    folder: str = ""
    export: bool = False
    eval_every: int | None = None
    patience: int | None = None
    learning_rate: float = LEARNING_RATE
    adapter: str | None = None
    four_bit: bool = False
    eight_bit: bool = False
    dora: bool = False
    tiled_mlp: bool = False
    persistence: int = 100
    """Parameters of at least so many elements are sharded at stage 3: all but the norms'."""
    skip: int | None = None
    """This step, counted from 0, has a bad loss."""
    passed: int | None = None
    """This step is gone past without a look."""
    probe: bool = False
    """Two steps at the longest batch first, undone."""
    attention_alone: bool = False
    """No model: see tests/train/shared_attention.py."""
    plain: bool = False
    """No DeepSpeed: a PyTorch loop over single rows, the reference of all others."""

    @property
    def together(self) -> int:
        """Ranks that work on the same rows."""
        return self.sequence_parallel * self.tensor_parallel


class Rows:
    """Random rows of 5 to 59 tokens; the first third of each is a prompt."""

    def __init__(self, count: int) -> None:
        generator = np.random.default_rng(0)
        self._ids = [
            generator.integers(0, VOCAB, size=int(n)).astype(np.int32) for n in generator.integers(5, 60, size=count)
        ]
        self._labels = [np.where(np.arange(len(ids)) < len(ids) // 3, -100, ids).astype(np.int32) for ids in self._ids]
        self.lengths = np.array([len(ids) for ids in self._ids], dtype=np.int32)
        self.trained = np.array([int((labels[1:] != -100).sum()) for labels in self._labels], dtype=np.int32)

    def ids(self, row: int) -> Any:
        return self._ids[row]

    def labels(self, row: int) -> Any:
        return self._labels[row]

    def __len__(self) -> int:
        return len(self._ids)


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "gemma2": {"head_dim": 16, "sliding_window": 16},
    "qwen3": {"head_dim": 16},
}
"""What a family's tiny model has besides the sizes. Gemma 2: windows, capped scores, a head tied to the embedding."""


def write_model_folder(folder: Path, family: str = "llama") -> None:
    described = AutoConfig.for_model(
        family, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=VOCAB, max_position_embeddings=128, **FAMILIES[family],
    )  # fmt: skip
    torch.manual_seed(SEED)
    AutoModelForCausalLM.from_config(described).save_pretrained(folder)


def config_of(case: Case, folder: Path) -> Config:
    return Config.model_validate({
        "base_model": str(folder), "datasets": [{"path": "random"}], "reinit_weights": case.adapter is None,
        "seed": SEED,
        "adapter": case.adapter, "lora_r": 4, "lora_target_linear": True,
        "load_in_4bit": case.four_bit, "load_in_8bit": case.eight_bit,
        "peft_use_dora": case.dora, "tiled_mlp": case.tiled_mlp,
        "optimizer": case.optimizer, "learning_rate": case.learning_rate, "weight_decay": 0.1, "max_grad_norm": 0.5,
        "master_weights": case.master_weights,
        "sample_packing": case.packing,
        "early_stopping_patience": case.patience, "tensor_parallel_size": case.tensor_parallel,
    })  # fmt: skip


def choice_of(case: Case, world: int) -> Choice:
    return Choice(
        zero_stage=case.zero_stage, offload_optimizer=case.offload, offload_params="none",  # type: ignore[arg-type]
        micro_batch_size=case.micro_batch_size, gradient_accumulation_steps=case.accumulation,
        global_batch_size=case.micro_batch_size * case.accumulation * world // case.together,
        gradient_checkpointing=case.checkpointing, attention=case.attention,  # type: ignore[arg-type]
        sequence_parallel_size=case.sequence_parallel,
        cross_entropy=case.cross_entropy, precision=case.precision, optimizer=case.optimizer, adapter=None,  # type: ignore[arg-type]
        sequence_len=WINDOW,
    )  # fmt: skip


def schedule_of(case: Case, rows: Rows, world: int) -> Schedule:
    return make_schedule(
        rows.lengths, rows.trained, window=WINDOW, packing=case.packing, shuffle=True, seed=SEED, world=world,
        micro_batch_size=case.micro_batch_size, accumulation=case.accumulation, epochs=3, max_steps=case.steps,
    )  # fmt: skip


def held_out(case: Case, rows: Rows, world: int) -> tuple[MicroBatch, ...]:
    """The training rows again, as held-out rows."""
    if case.eval_every is None:
        return ()
    return eval_batches(rows.lengths, world, case.micro_batch_size, WINDOW, case.packing)


def rates(case: Case) -> LearningRate:
    return LearningRate(case.learning_rate, "cosine", case.steps, 2)


class BadAt(LossWatch):
    """Finds one step's loss bad, whatever it is."""

    def __init__(self, step: int | None) -> None:
        super().__init__(action="stop" if step is None else "skip")
        self.step = step

    def skips(self, index: int, loss: float) -> bool:
        return index == self.step


def run_case(case: Case, ranks: ranks_of.Ranks, folder: Path) -> dict[str, Any]:
    config, choice, rows = config_of(case, folder), choice_of(case, ranks.world), Rows(case.rows)
    ranks = replace(ranks, on_one_row=case.sequence_parallel, tensor_parallel=case.tensor_parallel)
    shard = shard_of(ranks, case.sequence_parallel)
    told = engine.deepspeed_config(config, choice, 200_000, ZeroBuckets(persistence=case.persistence))
    model = load_model(config, choice, folder, VOCAB, case.attention, told)
    if case.leaks:
        AttentionInterface.register(attention.SDPA, over_ranks(leaking))
    loss_model = LossModel(model, case.cross_entropy)
    if case.zero_stage == 3:
        share_head_with_zero3(loss_model)
    optimizer = optimizers.optimizer_for(config, loss_model, case.offload != "none")
    with_engine, optimizer, _, _ = deepspeed.initialize(
        model=loss_model, optimizer=optimizer, config=told, dist_init_required=False
    )
    engine.send_as_they_lie(with_engine, case.zero_stage)
    if case.tiled_mlp and case.zero_stage == 3:
        tiled_mlp.gather_whole(model)
    mark_parts(with_engine, ranks.rank % case.tensor_parallel, case.tensor_parallel)
    undo_dry_step(optimizer)
    states, paths, progress = (
        checkpoint.States(model, optimizer, case.zero_stage),
        RunPaths(Path(case.folder)),
        Progress(),
    )
    if case.load:
        found, _ = restore.newest(states, paths, ranks)
        assert found is not None
        progress = found.progress
    assert decide_layout(loss_model, with_engine, config, ranks.device, DTYPES[case.precision], shard) == "flat"
    lines: list[dict[str, Any]] = []
    saver = Saver(states, paths, ranks, checkpoint.Keep(), {}, print)

    def save(at: Progress) -> None:
        if at.step == case.save_at or case.patience is not None:
            saver.save(at)

    run = Training(
        config=config, choice=choice, engine=with_engine, optimizer=optimizer, ranks=ranks, rows=rows,  # type: ignore[arg-type]
        schedule=schedule_of(case, rows, ranks.data_ranks), learning_rate=rates(case), layout=case.layout, filler_id=0,  # type: ignore[arg-type]
        shard=shard,
        loss_watch=BadAt(case.skip), passed=frozenset([] if case.passed is None else [case.passed]),
        memory=Unwatched(ranks.device), eval_rows=rows, save_every=case.save_at,  # type: ignore[arg-type]
        eval_every=case.eval_every, eval_micro=held_out(case, rows, ranks.data_ranks), log=lines.append, save=save,
    )  # fmt: skip
    if case.probe:
        assert probe(run, states)["step_seconds"] > 0
    train(run, progress)
    saver.wait()
    if case.export:
        export.export(loss_model, _NoTokenizer(), Path(case.folder), ranks)
    with_engine.destroy()
    return told_of(case, ranks.world, lines)


class Unwatched(PeakMemory):
    """Watching live tensors on a CPU takes four fifths of so small a run; tests/train/test_live_bytes.py does it."""

    @contextmanager
    def watched(self, really: bool = True) -> Iterator[None]:
        yield


class _NoTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def leaking(*tensors: Any, document_lengths: Any = None, **told: Any) -> Any:
    return attention.sdpa_by_document(*tensors, **told)


def plain_case(case: Case, folder: Path) -> dict[str, Any]:
    """The reference: each row alone through transformers' own forward pass, AdamW, clipping, no DeepSpeed."""
    config, choice, rows = config_of(case, folder), choice_of(case, 1), Rows(case.rows)
    model = load_model(config, choice, folder, VOCAB, "eager", {})
    model.train()
    optimizer = torch.optim.AdamW(optimizers.parameter_groups(model, config.weight_decay), lr=LEARNING_RATE)
    schedule, lines = schedule_of(case, rows, 1), []
    for index in range(schedule.steps):
        step = schedule.step(index)
        engine.set_learning_rate(optimizer, rates(case).at(index))
        total = 0.0
        for row in [row for dealt in step.micro for slots in dealt for slot in slots for row in slot]:
            ids = torch.from_numpy(rows.ids(row).astype(np.int64))[None]
            labels = torch.from_numpy(rows.labels(row).astype(np.int64))
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum") / step.trained_tokens
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        lines.append({"loss": total, "grad_norm": norm.item()})
    return told_of(case, 1, lines)


def told_of(case: Case, world: int, lines: list[dict[str, Any]]) -> dict[str, Any]:
    trained = [line for line in lines if "loss" in line]
    return {
        **asdict(case), "world": world, "losses": [line["loss"] for line in trained],
        "grad_norms": [line["grad_norm"] for line in trained],
        "eval_losses": [line["eval_loss"] for line in lines if "eval_loss" in line],
    }  # fmt: skip


def main() -> None:
    folder, cases = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    ranks = ranks_of.join(ranks_of.from_environment())
    for told in cases:
        case = Case(**told)
        home = folder if case.family == "llama" else folder / case.family
        try:
            if case.attention_alone:
                result = asdict(case) | {"differences": shared_attention.differences(ranks)}
            else:
                result = plain_case(case, home) if case.plain else run_case(case, ranks, home)
        except BadInput as error:
            result = asdict(case) | {"refused": str(error)}
        if ranks.is_first:
            with (folder / f"results-{ranks.world}.jsonl").open("a") as stream:
                stream.write(json.dumps(result) + "\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
