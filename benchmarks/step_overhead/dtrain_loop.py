"""dtrain through its own loop, built from the same functions as a run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.step_overhead import workload as settings
from benchmarks.step_overhead.workload import Workload
from dtrain.config.schema import Config
from dtrain.data.rows import TokenRows
from dtrain.data.schedule import Schedule, make_schedule
from dtrain.planner.choice import Choice
from dtrain.planner.setup import ZeroBuckets
from dtrain.train import engine, optimizers
from dtrain.train import ranks as ranks_of
from dtrain.train.loop import Training
from dtrain.train.loss import LossModel, share_head_with_zero3
from dtrain.train.lr import LearningRate
from dtrain.train.memory import PeakMemory
from dtrain.train.model import DTYPES, decide_layout, load_model
from dtrain.train.partitions import undo_dry_step
from dtrain.train.ranks import Ranks


def join() -> Ranks:
    return ranks_of.join(ranks_of.from_environment())


def config_of(folder: Path, **said: Any) -> Config:
    return Config.model_validate({
        "base_model": str(folder), "datasets": [{"path": "in memory"}], "reinit_weights": True, **said,
    })  # fmt: skip


def choice_of(config: Config, zero_stage: int, micro_batch_size: int, accumulation: int, world: int) -> Choice:
    return Choice(
        zero_stage=zero_stage, offload_optimizer="none", offload_params="none", micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=accumulation, global_batch_size=micro_batch_size * accumulation * world,
        gradient_checkpointing="none", sequence_parallel_size=1, attention="sdpa", cross_entropy="chunked",
        precision="fp32", optimizer=config.optimizer, adapter=None, sequence_len=config.sequence_len,
    )  # fmt: skip


def training(
    config: Config, choice: Choice, model: Any, ranks: Ranks, rows: TokenRows, schedule: Schedule,
    learning_rate: LearningRate, **hooks: Any,
) -> Training:  # fmt: skip
    """A run ready for `dtrain.train.loop.train`, with `model` as its model."""
    import deepspeed

    told = engine.deepspeed_config(config, choice, sum(p.numel() for p in model.parameters()), ZeroBuckets())
    loss_model = LossModel(model, choice.cross_entropy)
    if choice.zero_stage == 3:
        share_head_with_zero3(loss_model)
    with_engine, optimizer, _, _ = deepspeed.initialize(
        model=loss_model, optimizer=optimizers.optimizer_for(config, loss_model, False), config=told,
        dist_init_required=False,
    )  # fmt: skip
    undo_dry_step(optimizer)
    layout = decide_layout(loss_model, with_engine, config, ranks.device, DTYPES[choice.precision])
    return Training(
        config=config, choice=choice, engine=with_engine, optimizer=optimizer, ranks=ranks, rows=rows,
        schedule=schedule, learning_rate=learning_rate, layout=layout, filler_id=settings.PAD_ID,
        memory=PeakMemory(ranks.device), **hooks,
    )  # fmt: skip


def run(workload: Workload, options: dict[str, Any], start_clock: settings.StartClock) -> None:
    """`packed`, `zero_stage`: the clock ticks where the loop asks whether to stop."""
    from dtrain.train.loop import Progress, train

    ranks = join()
    packed = bool(options["packed"])
    with tempfile.TemporaryDirectory() as folder:
        workload.write_model_folder(Path(folder))
        config = config_of(
            Path(folder), optimizer=settings.OPTIMIZER, learning_rate=settings.LEARNING_RATE,
            weight_decay=settings.WEIGHT_DECAY, max_grad_norm=settings.MAX_GRAD_NORM, sample_packing=packed,
            logging_steps=settings.LOGGING_STEPS, sequence_len=workload.window, seed=workload.seed,
        )  # fmt: skip
        micro_batch_size = workload.windows_per_step if packed else workload.rows_per_step
        choice = choice_of(config, int(options["zero_stage"]), micro_batch_size, 1, ranks.world)
        told = engine.deepspeed_config(config, choice, 10**9, ZeroBuckets())
        model = load_model(config, choice, Path(folder), workload.vocabulary, choice.attention, told)
    rows = workload.token_rows
    schedule = make_schedule(
        rows.lengths, rows.trained, window=workload.window, packing=packed, shuffle=True, seed=workload.seed,
        world=ranks.world, micro_batch_size=micro_batch_size, accumulation=1, epochs=10_000, max_steps=None,
    )  # fmt: skip
    clock = start_clock(schedule.steps_per_epoch)

    def ticked() -> bool:
        clock.tick()
        return False

    rate = LearningRate(settings.LEARNING_RATE, "constant", schedule.steps, 0)
    ready = training(config, choice, model, ranks, rows, schedule, rate, log=lambda line: None, stop_asked=ticked)
    train(ready, Progress())
