"""The run of one rank, stage by stage: every object the loop needs is made here, once, in the open."""

from __future__ import annotations

import math
import secrets
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from safetensors import SafetensorError

from dtrain.config import deepspeed_file
from dtrain.config.schema import Config
from dtrain.data.prepare import Prepared, open_prepared
from dtrain.data.schedule import MicroBatch, Schedule, eval_batches, make_schedule
from dtrain.errors import RunFailed
from dtrain.files import read_json, write_json
from dtrain.heartbeat import Heart
from dtrain.paths import RunPaths
from dtrain.planner.choice import Choice
from dtrain.planner.measured import compared, keep
from dtrain.planner.plan import versions
from dtrain.planner.setup import ZeroBuckets
from dtrain.track import jsonl, plot, wandb
from dtrain.train import attention, checkpoint, engine, export, generate, loss_watch, ranks, same_run
from dtrain.train.interval import SaveClock, hours_between_failures
from dtrain.train.loop import Progress, Stopped, Training, train
from dtrain.train.loss import LossModel, share_head_with_zero3
from dtrain.train.loss_watch import LossWatch
from dtrain.train.lr import LearningRate, warmup_steps
from dtrain.train.memory import PeakMemory
from dtrain.train.model import DTYPES, decide_layout, load_model
from dtrain.train.partitions import undo_dry_step
from dtrain.train.ranks import Ranks
from dtrain.train.saver import Outcome, Saver
from dtrain.train.sequence_parallel import shard_of
from dtrain.train.signals import StopFlag
from dtrain.train.worker import INTERRUPTED, StateFile, Voice, wait_for_data


@dataclass(frozen=True)
class Rank:
    """What every stage of a rank's run works with."""

    paths: RunPaths
    config: Config
    choice: Choice
    plan: dict[str, Any]
    ranks: Ranks
    state: StateFile
    say: Voice


def execute(paths: RunPaths, config: Config, choice: Choice, plan: dict[str, Any], stop: StopFlag) -> int:
    """The whole run of this rank: 0 when the model is written, 75 when it was asked to stop and has saved."""
    alone = ranks.from_environment(on_one_row=choice.sequence_parallel_size)
    state = StateFile(paths.state, alone.is_first)
    state.stage("starting")
    prepared = open_prepared(wait_for_data(paths, stop))
    schedule = schedule_of(config, choice, prepared, alone.data_ranks)
    state.steps = schedule.steps
    rank = Rank(paths, config, choice, plan, ranks.join(alone), state, Voice(alone.is_first))
    state.stage("loading")
    tracker = wandb.Tracker()
    try:
        run, progress = build(rank, prepared, schedule)
        if rank.ranks.is_first:
            name = config.name or paths.output.name
            tracker = wandb.start(config, name, _wandb_id(paths), paths.run, plan, rank.say)
        saver = saver_of(rank, run, prepared, tracker.run_id)
        finish(rank, prepared, connected(rank, run, saver, tracker, stop), progress, saver, tracker)
    except Stopped:
        rank.say(words_of_stop(progress.step, saver.last))
        tracker.finish(INTERRUPTED)
        return INTERRUPTED
    except BaseException:
        tracker.finish(1)
        raise
    tracker.finish(0)
    return 0


def schedule_of(config: Config, choice: Choice, prepared: Prepared, data_ranks: int) -> Schedule:
    return make_schedule(
        prepared.train.lengths, prepared.train.trained, window=choice.sequence_len, packing=config.sample_packing,
        shuffle=config.shuffle, seed=config.seed, world=data_ranks, micro_batch_size=choice.micro_batch_size,
        accumulation=choice.gradient_accumulation_steps, epochs=config.num_epochs, max_steps=config.max_steps,
    )  # fmt: skip


def build(rank: Rank, prepared: Prepared, schedule: Schedule) -> tuple[Training, Progress]:
    """Model, engine and position: the run as it stands before its next step."""
    import deepspeed

    config, choice, device = rank.config, rank.choice, rank.ranks.device
    tokenizer = generate.read_tokenizer(prepared.tokenizer_folder)
    back_end, passed_over = attention.choose(config.attention, device, DTYPES[choice.precision])
    rank.say(f"attention: {back_end}" + "".join(f"\n[dtrain]   not {line}" for line in passed_over))
    if choice.precision == "tf32":
        import torch

        torch.backends.cuda.matmul.allow_tf32 = True
    told = engine_config(rank, schedule.steps)
    model = load_model(config, choice, config.base_model, len(tokenizer), back_end, told)
    loss_model = LossModel(model, choice.cross_entropy, _chunks(config))
    if choice.zero_stage == 3:
        share_head_with_zero3(loss_model)
    optimizer = engine.optimizer_for(config, loss_model, choice.offload_optimizer != "none")
    with_engine, optimizer, _, _ = deepspeed.initialize(
        model=loss_model, optimizer=optimizer, config=told, dist_init_required=False
    )
    undo_dry_step(optimizer)
    progress = resume(rank, checkpoint.States(model, optimizer, choice.zero_stage))
    shard = shard_of(rank.ranks, choice.sequence_parallel_size)
    layout = decide_layout(loss_model, with_engine, config, device, DTYPES[choice.precision], shard)
    if layout == "padded":
        rank.say(f"{type(model).__name__} cannot keep documents of one row apart: rows are padded side by side")
    run = Training(
        config=config, choice=choice, engine=with_engine, optimizer=optimizer, ranks=rank.ranks, rows=prepared.train,
        schedule=schedule, learning_rate=learning_rate(config, schedule.steps), layout=layout, shard=shard,
        filler_id=tokenizer.pad_token_id or 0, memory=PeakMemory(device), eval_rows=prepared.eval,
        eval_micro=held_out(rank, prepared),
        eval_every=config.eval_steps or every(config.evals_per_epoch, schedule),
        save_every=config.save_steps or every(config.saves_per_epoch, schedule),
    )  # fmt: skip
    return run, progress


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
    ours = engine.deepspeed_config(config, choice, int(rank.plan["model"]["parameters"]), ZeroBuckets())
    file = deepspeed_file.of(config)
    if file is None:
        return ours
    rate = learning_rate(config, steps)
    filled = deepspeed_file.fill_auto(
        file.document,
        deepspeed_file.AutoValues(
            micro_batch_size=choice.micro_batch_size, gradient_accumulation_steps=choice.gradient_accumulation_steps,
            train_batch_size=choice.global_batch_size, max_grad_norm=config.max_grad_norm,
            learning_rate=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon,
            weight_decay=config.weight_decay, bf16=choice.precision == "bf16", fp16=choice.precision == "fp16",
            warmup_steps=rate.warmup_steps, total_steps=steps,
            hidden_size=rank.plan["model"].get("hidden_size"),
        ),
    )  # fmt: skip
    return engine.merged_with_file(ours, {name: value for name, value in filled.items() if name not in engine.OURS})


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
    """Where the newest good checkpoint stands, or the beginning."""
    newest, damaged = checkpoint.newest_good(rank.paths, rank.ranks)
    for line in damaged:
        rank.say(f"checkpoint passed over: {line}")
    if newest is None:
        if rank.ranks.is_first:
            jsonl.forget_after(rank.paths.metrics, 0)
        return Progress()
    same_run.refuse_other(rank.config, rank.choice, newest, rank.say)
    checkpoint.load(states, newest, rank.ranks)
    if rank.ranks.is_first:
        jsonl.forget_after(rank.paths.metrics, newest.step)
    rank.say(f"going on after step {newest.step}")
    return newest.progress


def saver_of(rank: Rank, run: Training, prepared: Prepared, wandb_run_id: str | None) -> Saver:
    """What writes this run's checkpoints, and what their manifests tell of it."""
    config = rank.config
    about = {
        "versions": versions(), "choice": asdict(rank.choice), "wandb_run_id": wandb_run_id,
        "schedule": same_run.facts(config, rank.choice), "data": {"fingerprint": prepared.fingerprint},
        "random": {"seed": config.seed, "state": "of step and rank: dtrain.train.loop.seed_of"},
    }  # fmt: skip
    states = checkpoint.States(run.engine.module.model, run.optimizer, rank.choice.zero_stage)
    keep = checkpoint.Keep(config.save_total_limit or 2, config.save_keep_hours)
    return Saver(states, rank.paths, rank.ranks, keep, about, rank.say)


def save_clock(rank: Rank, run: Training) -> SaveClock | None:
    """Of rank 0, where the config gives no number of steps."""
    if run.save_every is not None or rank.config.save_every != "auto" or not rank.ranks.is_first:
        return None
    return SaveClock(rank.config.hours_between_failures or hours_between_failures(rank.ranks.world))


def connected(rank: Rank, run: Training, saver: Saver, tracker: wandb.Tracker, stop: StopFlag) -> Training:
    """The loop's ways to the outside: a line of metrics, a checkpoint, a wish to stop, a sign of life."""
    heart = Heart(rank.paths.heartbeat(rank.ranks.rank), rank.config.hang_seconds)
    journal = jsonl.Journal(rank.paths.metrics, rank.say)
    clock = save_clock(rank, run)
    stood_still: list[float] = []

    def log(line: dict[str, Any]) -> None:
        if rank.ranks.is_first:
            line |= {"save_seconds": sum(stood_still) if stood_still else None}
            stood_still.clear()
            journal.add(line)
            tracker.log(line)
            rank.state.reached(line["step"], line["epoch"])

    def save(progress: Progress) -> None:
        rank.state.step = progress.step  # also where the step was not logged
        rank.state.stage("saving")
        heart.beat("saving", watched=False)  # a slow disk is no hang
        stood_still.append(saver.save(progress))
        if clock is not None:
            clock.saved(stood_still[-1], saver.last.seconds if saver.last else 0.0)
        rank.state.stage("training")

    return replace(
        run, log=log, save=save, save_due=clock.due if clock else lambda: False, stop_asked=lambda: stop.asked,
        beat=heart.beat, loss_watch=LossWatch.of(rank.config), passed=loss_watch.passed(rank.paths.passed),
        write_down=partial(loss_watch.write_down, rank.paths.passed),
    )  # fmt: skip


def finish(
    rank: Rank, prepared: Prepared, run: Training, progress: Progress, saver: Saver, tracker: wandb.Tracker
) -> None:
    """Train to the end, write the model, let it write, and put the end of the run into numbers."""
    rank.state.stage("training")
    started = time.time()
    try:
        train(run, progress)
    except Stopped:
        saver.wait()
        raise
    seconds = time.time() - started
    rank.state.stage("exporting")
    write_model(rank, prepared, run, saver.wait())
    peaks = rank.ranks.gather(run.memory.figures())
    if rank.ranks.is_first:
        report = report_of(rank, progress, peaks, seconds, saver.seconds)
        report["measured"]["longest_tokens"] = longest_tokens(rank, prepared, run)
        tell_the_end(rank, report)
        tracker.summarize(report["measured"] | {f"planned_{key}": value for key, value in report["planned"].items()})
        rank.state.stage("done")
    rank.ranks.wait()


def longest_tokens(rank: Rank, prepared: Prepared, run: Training) -> int:
    """Of this rank's longest micro-batch, over all ranks that share it: what the measured peak is for."""
    slots = run.schedule.longest(rank.ranks.data_rank)
    return sum(int(prepared.train.lengths[row]) for slot in slots for row in slot)


def write_model(rank: Rank, prepared: Prepared, run: Training, saved: Outcome | None) -> None:
    """The model folder. RunFailed when the disk does not take it: what is saved, and how it is written later."""
    tokenizer = generate.read_tokenizer(prepared.tokenizer_folder)
    try:
        export.export(run.engine.module, tokenizer, rank.paths.output, rank.ranks, prepared.report.stop_tokens)
    except (OSError, SafetensorError) as error:
        lost = "" if saved is None or saved.problem is None else f", nor could the checkpoint of step {saved.step}"
        kept = "the checkpoint before it is whole" if lost else "the last step's checkpoint is whole"
        raise RunFailed(
            f"the model could not be written{lost}: {str(error).splitlines()[0]}; {kept}", file=str(rank.paths.output),
            fix="free space on that disk, then `dtrain resume`: it goes on from that checkpoint and writes the model",
        ) from error  # fmt: skip


def tell_the_end(rank: Rank, report: dict[str, Any]) -> None:
    """Samples, the chart and the report. The model is written: a disk that is full now fails no run."""
    rank.state.stage("sampling")
    try:
        write_json(rank.paths.report, report)
        plot.loss(rank.paths.metrics, rank.paths.loss_plot)
        write_json(rank.paths.samples, generate.samples(rank.config, rank.paths.output))
        run = read_json(rank.paths.about)["id"] if rank.paths.about.is_file() else rank.paths.output.name
        keep(compared(rank.plan, report, run))
    except OSError as error:
        rank.say(f"WARNING: the model is written, its report is not whole: {error}")


def words_of_stop(step: int, saved: Outcome | None) -> str:
    """What a stopped run can go on from."""
    if saved is None or saved.problem is not None or saved.step != step:
        return f"stopped after step {step}, which could not be saved: `dtrain resume` takes the checkpoint before it"
    return f"stopped after step {step}, everything is saved"


def report_of(
    rank: Rank, progress: Progress, peaks: list[dict[str, float]], seconds: float, save_seconds: float
) -> dict[str, Any]:
    """report.json: what was planned beside what was measured."""
    lines = jsonl.read(rank.paths.metrics)
    trained = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "eval_loss" in line]
    steady = sorted(line["step_seconds"] for line in trained[1:] or trained)
    measured = {
        "peak_allocated_gib": max(peak["allocated_gib"] for peak in peaks),
        "peak_reserved_gib": max(peak["reserved_gib"] for peak in peaks),
        "step_seconds": steady[len(steady) // 2] if steady else None,
        "training_seconds": seconds,
        "save_seconds": save_seconds,
        "first_loss": trained[0]["loss"] if trained else None,
        "last_loss": trained[-1]["loss"] if trained else None,
        "first_eval_loss": held_out[0]["eval_loss"] if held_out else None,
        "last_eval_loss": held_out[-1]["eval_loss"] if held_out else None,
        "best_eval_loss": progress.best_eval_loss,
        "best_step": progress.best_step,
        "steps": progress.step,
        "tokens_seen": progress.tokens_seen,
    }
    memory, throughput = rank.plan["memory_gib"], rank.plan["throughput"]
    planned = {
        "peak_allocated_gib": memory["peak_allocated"], "peak_reserved_gib": memory["peak_reserved"],
        "step_seconds": throughput["step_seconds"], "steps": rank.plan["schedule"]["steps"],
    }  # fmt: skip
    return {"schema_version": 1, "planned": planned, "measured": measured}


def _wandb_id(paths: RunPaths) -> str:
    """One W&B run over all resumes: its id is drawn once and lies in the run's folder."""
    file = paths.run / "wandb.json"
    if not file.exists():
        write_json(file, {"run_id": secrets.token_hex(4)})
    return str(read_json(file)["run_id"])
