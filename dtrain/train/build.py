"""A rank's model, engine and position in the schedule: every object the loop needs is made here, once, in the open."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from dtrain.config import deepspeed_file
from dtrain.config.schema import Config
from dtrain.data.prepare import Prepared
from dtrain.data.schedule import MicroBatch, Schedule, eval_batches, make_schedule
from dtrain.heartbeat import Heart
from dtrain.paths import RunPaths
from dtrain.planner.choice import Choice
from dtrain.planner.deepspeed_values import auto_values
from dtrain.planner.setup import ZeroBuckets
from dtrain.track import jsonl
from dtrain.train import (
    attention_choice,
    checkpoint,
    engine,
    fused_loss,
    generate,
    nvme,
    optimizers,
    restore,
    same_run,
    tiled_mlp,
)
from dtrain.train.loop import Progress, Training
from dtrain.train.loss import LossModel, share_head_with_zero3
from dtrain.train.lr import LearningRate, warmup_steps
from dtrain.train.memory import PeakMemory
from dtrain.train.model import DTYPES, decide_layout, load_model
from dtrain.train.partitions import undo_dry_step
from dtrain.train.ranks import Ranks
from dtrain.train.sequence_parallel import shard_of
from dtrain.train.tensor_parallel import mark_parts
from dtrain.train.worker import StateFile, Voice


@dataclass(frozen=True)
class Rank:
    """What every stage of a rank's run works with."""

    paths: RunPaths
    config: Config
    choice: Choice
    plan: dict[str, Any]
    ranks: Ranks
    state: StateFile
    heart: Heart
    memory: PeakMemory
    say: Voice


def build(rank: Rank, prepared: Prepared, schedule: Schedule) -> tuple[Training, Progress]:
    """Model, engine and position: the run as it stands before its next step."""
    import deepspeed

    config, choice, device = rank.config, rank.choice, rank.ranks.device
    tokenizer = generate.read_tokenizer(prepared.tokenizer_folder)
    sight = attention_choice.sight_of(config)
    back_end, passed_over = attention_choice.choose(config.attention, device, DTYPES[choice.precision], sight)
    rank.say(f"attention: {back_end}" + "".join(f"\n[dtrain]   not {line}" for line in passed_over))
    if choice.precision == "tf32":
        import torch

        torch.backends.cuda.matmul.allow_tf32 = True
    told = engine_config(rank, schedule.steps)
    model = load_model(config, choice, config.base_model, len(tokenizer), back_end, told)
    if choice.cross_entropy == "fused":
        fused_loss.require(device, DTYPES[choice.precision])
    loss_model = LossModel(model, choice.cross_entropy, _chunks(config))
    if choice.zero_stage == 3:
        share_head_with_zero3(loss_model)
    optimizer = optimizers.optimizer_for(config, loss_model, choice.offload_optimizer != "none")
    with_engine, optimizer, _, _ = deepspeed.initialize(
        model=loss_model, optimizer=optimizer, config=told, dist_init_required=False
    )
    engine.send_as_they_lie(with_engine, choice.zero_stage)
    mark_parts(with_engine, rank.ranks.rank % config.tensor_parallel_size, config.tensor_parallel_size)
    if config.tiled_mlp and choice.zero_stage == 3:
        tiled_mlp.gather_whole(model)
    undo_dry_step(optimizer)
    progress = resume(rank, checkpoint.States(model, optimizer, choice.zero_stage))
    shard = shard_of(rank.ranks, choice.sequence_parallel_size)
    layout = decide_layout(loss_model, with_engine, config, device, DTYPES[choice.precision], shard)
    if layout == "padded":
        rank.say(f"{type(model).__name__} cannot keep documents of one row apart: rows are padded side by side")
    run = Training(
        config=config, choice=choice, engine=with_engine, optimizer=optimizer, ranks=rank.ranks, rows=prepared.train,
        schedule=schedule, learning_rate=learning_rate(config, schedule.steps), layout=layout, shard=shard,
        filler_id=tokenizer.pad_token_id or 0, memory=rank.memory, eval_rows=prepared.eval,
        eval_micro=held_out(rank, prepared),
        eval_every=config.eval_steps or every(config.evals_per_epoch, schedule),
        save_every=config.save_steps or every(config.saves_per_epoch, schedule),
    )  # fmt: skip
    return run, progress


def schedule_of(config: Config, choice: Choice, prepared: Prepared, data_ranks: int) -> Schedule:
    return make_schedule(
        prepared.train.lengths, prepared.train.trained, window=choice.sequence_len, packing=config.sample_packing,
        shuffle=config.shuffle, seed=config.seed, world=data_ranks, micro_batch_size=choice.micro_batch_size,
        accumulation=choice.gradient_accumulation_steps, epochs=config.num_epochs, max_steps=config.max_steps,
    )  # fmt: skip


def held_out(rank: Rank, prepared: Prepared) -> tuple[MicroBatch, ...]:
    """The micro-batches of an evaluation; none without held-out rows."""
    if prepared.eval is None:
        return ()
    config, choice = rank.config, rank.choice
    packing = config.sample_packing if config.eval_sample_packing is None else config.eval_sample_packing
    micro_batch = config.eval_batch_size or choice.micro_batch_size
    return eval_batches(prepared.eval.lengths, rank.ranks.data_ranks, micro_batch, choice.sequence_len, packing)


def engine_config(rank: Rank, steps: int) -> dict[str, Any]:
    """What DeepSpeed is told: all we decide, and over it the person's own file with its "auto" values filled."""
    config, choice = rank.config, rank.choice
    model = rank.plan["model"]
    ours = engine.deepspeed_config(
        config, choice, int(model["parameters"]), ZeroBuckets(), trained=int(model["trainable_parameters"])
    )
    told = engine.merged_with_file(ours, _from_file(rank, steps))
    return engine.merged_with_file(told, nvme.section(config, choice, rank.paths.output, rank.ranks.world))


def _from_file(rank: Rank, steps: int) -> dict[str, Any]:
    """Of the person's own DeepSpeed file what is left to it, nothing where there is none."""
    config, choice = rank.config, rank.choice
    file = deepspeed_file.of(config)
    if file is None:
        return {}
    rate = learning_rate(config, steps)
    values = auto_values(config, choice, rank.plan["model"].get("hidden_size"))
    filled = deepspeed_file.fill_auto(file.document, replace(values, warmup_steps=rate.warmup_steps, total_steps=steps))
    return {name: value for name, value in filled.items() if name not in engine.OURS}


def _chunks(config: Config) -> int | None:
    return None if config.cross_entropy_chunks == "auto" else config.cross_entropy_chunks


def every(times_per_epoch: int | None, schedule: Schedule) -> int | None:
    """Steps between events that happen so many times an epoch."""
    return None if times_per_epoch is None else max(1, math.ceil(schedule.steps_per_epoch / times_per_epoch))


def learning_rate(config: Config, steps: int) -> LearningRate:
    warmup = warmup_steps(steps, config.warmup_steps, config.warmup_ratio, config.lr_scheduler)
    return LearningRate(
        config.learning_rate, config.lr_scheduler, steps, warmup, config.cosine_min_lr_ratio, config.lr_decay_ratio
    )


def resume(rank: Rank, states: checkpoint.States) -> Progress:
    """Where the newest good checkpoint stands, with its states in place; or the beginning."""
    code = same_run.code_of(states.model)
    newest, damaged = restore.newest(
        states, rank.paths, rank.ranks, lambda found: same_run.refuse_other(rank.config, rank.choice, found, code)
    )
    for line in damaged:
        rank.say(f"checkpoint passed over: {line}")
    if newest is None:
        if rank.ranks.is_first:
            jsonl.forget_after(rank.paths.metrics, 0)
        return Progress()
    if rank.ranks.is_first:
        jsonl.forget_after(rank.paths.metrics, newest.step)
    rank.say(f"going on after step {newest.step}")
    return newest.progress
