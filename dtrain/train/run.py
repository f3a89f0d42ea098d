"""The run of one rank, from its folder to its exit code."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from dtrain.config.schema import Config
from dtrain.data.prepare import Prepared, open_prepared
from dtrain.data.schedule import Schedule
from dtrain.files import read_json, write_json
from dtrain.heartbeat import Heart
from dtrain.paths import RunPaths
from dtrain.planner.choice import Choice
from dtrain.track import jsonl, wandb
from dtrain.train import checkpoint, loss_watch, nvme, probe, ranks, same_run
from dtrain.train.build import Rank, build, schedule_of
from dtrain.train.interval import SaveClock, hours_between_failures
from dtrain.train.loop import Progress, Stopped, Training, train
from dtrain.train.loss_watch import LossWatch
from dtrain.train.memory import PeakMemory
from dtrain.train.out_of_memory import is_out_of_memory, out_of_memory
from dtrain.train.report import longest_tokens, report_of, tell_the_end, words_of_stop, write_model
from dtrain.train.saver import Saver
from dtrain.train.signals import StopFlag
from dtrain.train.worker import INTERRUPTED, StateFile, Voice, wait_for_data


def execute(paths: RunPaths, config: Config, choice: Choice, plan: dict[str, Any], stop: StopFlag) -> int:
    """The whole run of this rank: 0 when the model is written, 75 when it was asked to stop and has saved."""
    alone = ranks.from_environment(choice.sequence_parallel_size, config.tensor_parallel_size)
    state = StateFile(paths.state, alone.is_first)
    state.stage("starting")
    prepared = open_prepared(wait_for_data(paths, stop))
    schedule = schedule_of(config, choice, prepared, alone.data_ranks)
    state.steps = schedule.steps
    heart, memory = Heart(paths.heartbeat(alone.rank), config.hang_seconds), PeakMemory(alone.device)
    rank = Rank(paths, config, choice, plan, ranks.join(alone), state, heart, memory, Voice(alone.is_first))
    with shortage_told(rank), nvme.kept(rank.ranks, config, paths.output, plan):
        return whole_run(rank, prepared, schedule, stop)


@contextmanager
def shortage_told(rank: Rank) -> Iterator[None]:
    """OutOfMemory, with what the rank held, for whatever inside shows that memory ran out."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        planned_gib, heart = rank.plan["memory_gib"]["peak_allocated"], rank.heart
        raise out_of_memory(error, rank.memory, heart.place, heart.step, planned_gib) from error


def whole_run(rank: Rank, prepared: Prepared, schedule: Schedule, stop: StopFlag) -> int:
    """Build, train, write; the exit code."""
    rank.state.stage("loading")
    tracker = wandb.Tracker()
    try:
        run, progress = build(rank, prepared, schedule)
        if rank.ranks.is_first:
            name = rank.config.name or rank.paths.output.name
            tracker = wandb.start(rank.config, name, _wandb_id(rank.paths), rank.paths.run, rank.plan, rank.say)
        saver = saver_of(rank, run, prepared, tracker.run_id)
        ready = connected(rank, run, saver, tracker, stop)
        if rank.config.probe and progress.step == 0:
            probed(rank, ready, saver.states)
        finish(rank, prepared, ready, progress, saver, tracker)
    except Stopped:
        rank.say(words_of_stop(progress.step, saver.last))
        tracker.finish(INTERRUPTED)
        return INTERRUPTED
    except BaseException:
        tracker.finish(1)
        raise
    tracker.finish(0)
    return 0


def saver_of(rank: Rank, run: Training, prepared: Prepared, wandb_run_id: str | None) -> Saver:
    """What writes this run's checkpoints, and what their manifests tell of it."""
    config = rank.config
    about = {
        "versions": same_run.code_of(run.engine.module.model), "choice": asdict(rank.choice),
        "wandb_run_id": wandb_run_id,
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
        rank.heart.beat("saving", watched=False)  # a slow disk is no hang
        stood_still.append(saver.save(progress))
        if clock is not None:
            clock.saved(stood_still[-1], saver.last.seconds if saver.last else 0.0)
        rank.state.stage("training")

    def write_down(steps: Sequence[int], loss: float, rows: Sequence[Sequence[int]]) -> None:
        rank.say(f"step {steps[-1] + 1} is left out: its loss is {loss:.4g}; its rows: {loss_watch.named(rows)}")
        loss_watch.write_down(rank.paths.passed, steps, loss, rows)

    passed = frozenset[int]().union(*rank.ranks.gather(loss_watch.passed(rank.paths.passed)))  # rank 0's disk has it
    return replace(
        run, log=log, save=save, save_due=clock.due if clock else lambda: False, stop_asked=lambda: stop.asked,
        beat=rank.heart.beat, loss_watch=LossWatch.of(rank.config), passed=passed,
        write_down=write_down,
    )  # fmt: skip


def probed(rank: Rank, run: Training, states: checkpoint.States) -> None:
    """Measure two steps, tell them beside the plan, and begin as if nothing had been."""
    rank.state.stage("probing")
    told = rank.ranks.gather(probe.probe(run, states))
    if rank.ranks.is_first:
        document = probe.compared(rank.plan, told)
        write_json(rank.paths.probe, document)
        rank.say(probe.words(document, rank.plan["hours"]))


def finish(
    rank: Rank, prepared: Prepared, run: Training, progress: Progress, saver: Saver, tracker: wandb.Tracker
) -> None:
    """Train to the end, write the model, let it write, and put the end of the run into numbers."""
    rank.state.stage("training")
    started = time.monotonic()  # the clock may be set meanwhile
    try:
        train(run, progress)
    except Stopped:
        saver.wait()
        raise
    seconds = time.monotonic() - started
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


def _wandb_id(paths: RunPaths) -> str:
    """One W&B run over all resumes: its id is drawn once and lies in the run's folder."""
    file = paths.run / "wandb.json"
    if not file.exists():
        write_json(file, {"run_id": secrets.token_hex(4)})
    return str(read_json(file)["run_id"])
