"""The training loop: one page. What each step trains on, in what order, and how it is normalised is decided here.

The loss of a step is the sum of cross-entropies over its trained tokens, over all ranks and micro-batches, divided by
their global number. The schedule knows that number beforehand, so no collective and no device sync is needed for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dtrain.config.schema import Config
from dtrain.data.rows import TokenRows
from dtrain.data.schedule import MicroBatch, Schedule, Step
from dtrain.planner.choice import Choice
from dtrain.train import gradients
from dtrain.train.adapters import evaluating
from dtrain.train.batch import Batch, Slots, flat_batch, padded_batch
from dtrain.train.engine import clip_gradients, clips_itself, gradient_norm, set_learning_rate
from dtrain.train.loss_watch import LossWatch, failure, rows_of
from dtrain.train.lr import LearningRate
from dtrain.train.memory import PeakMemory
from dtrain.train.model import Layout
from dtrain.train.ranks import Ranks
from dtrain.train.sequence_parallel import SequenceShard

SAVE, STOP = 1, 2
"""What a rank may wish for between two steps; the greatest wish of all ranks is done."""


@dataclass
class Progress:
    """What a resumed run must know and cannot compute: everything else follows from the step."""

    step: int = 0
    """Optimizer steps done."""
    tokens_seen: int = 0
    best_eval_loss: float | None = None
    best_step: int | None = None
    evals_without_gain: int = 0
    passed_steps: int = 0
    """Steps gone past for their bad loss."""


@dataclass(frozen=True)
class Training:
    """All that the loop works with, decided before it starts."""

    config: Config
    choice: Choice
    engine: Any
    optimizer: Any
    ranks: Ranks
    rows: TokenRows
    schedule: Schedule
    learning_rate: LearningRate
    layout: Layout
    filler_id: int
    memory: PeakMemory
    shard: SequenceShard | None = None
    """This rank's part of every row, where rows lie on several ranks."""
    eval_rows: TokenRows | None = None
    eval_micro: tuple[MicroBatch, ...] = ()
    loss_watch: LossWatch = field(default_factory=LossWatch)
    passed: frozenset[int] = frozenset()
    """Steps to go past, counted from 0: their loss was bad in an earlier life."""
    write_down: Callable[..., None] = field(default=lambda steps, loss, rows: None)
    """Steps to go past in the next life."""
    eval_every: int | None = None
    """Steps between evaluations; None: only at the end."""
    save_every: int | None = None
    """Steps between checkpoints; None: at the end, and when `save_due` says so."""
    log: Callable[[dict[str, Any]], None] = print
    save: Callable[[Progress], None] = field(default=lambda progress: None)
    save_due: Callable[[], bool] = field(default=lambda: False)
    """By the clock of one rank."""
    stop_asked: Callable[[], bool] = field(default=lambda: False)
    beat: Callable[..., None] = field(default=lambda place, step=None: None)
    """This rank got on to a place of a step; a watchdog misses beats."""

    def batch(self, rows: TokenRows, slots: Slots, weight: float = 1.0) -> Batch:
        if self.layout == "flat":
            return flat_batch(rows, slots, self.ranks.device, weight, self.shard)
        return padded_batch(rows, slots, self.ranks.device, self.filler_id, weight)

    def share_of(self, rows: TokenRows, dealt: MicroBatch) -> Batch:
        """This rank's part of a micro-batch. A rank with nothing to do computes row 0 with weight 0, so that every
        parameter has a gradient on every rank and collectives match."""
        slots = dealt[self.ranks.data_rank]
        return self.batch(rows, slots) if slots else self.batch(rows, ((0,),), weight=0.0)


class Stopped(Exception):
    """The loop ended between two steps because it was asked to; everything is saved."""


def train(run: Training, progress: Progress) -> Progress:
    """Run the schedule from `progress.step` to its end. Raises Stopped when asked to stop."""
    run.engine.train()
    rehearse(run)
    started = time.perf_counter()
    first = progress.step
    for index in range(first, run.schedule.steps):
        step = run.schedule.step(index)
        done = None
        if index not in run.passed:
            with run.memory.watched(index <= first + 1):  # optimizer states peak in the second
                done = optimizer_step(run, index, step)
        count(progress, index, step, done)
        due = Due(run, progress)
        line: dict[str, Any] = {}
        looked = done is not None and (due.log or run.loss_watch.each_step)
        if done is not None and looked:
            watch_loss(run, index, done.loss(run, step))
        if done is not None and due.log:
            line = metrics(run, progress, step, done, time.perf_counter() - started)
        if due.evaluate:
            line |= {"step": progress.step, "epoch": round(step.epoch, 4), "eval_loss": evaluate(run)}
            judge(progress, line["eval_loss"])
        if line:
            run.log(line)
        run.beat("the end")
        wish = run.ranks.greatest(STOP if run.stop_asked() else SAVE if run.save_due() else 0)
        stop = wish == STOP
        ends = out_of_patience(run, progress)
        saves = due.save or wish > 0 or ends
        if line:
            started = time.perf_counter()
        if saves and done is not None and not looked:
            watch_loss(run, index, done.loss(run, step))
        if saves:
            started += timed(run.save, progress)
        if stop and progress.step < run.schedule.steps:
            raise Stopped
        if ends:
            break
    return progress


def count(progress: Progress, index: int, step: Step, done: Done | None) -> None:
    """A step is behind us: trained on, or gone past."""
    progress.step = index + 1
    if done is None:
        progress.passed_steps += 1
    else:
        progress.tokens_seen += step.tokens


def watch_loss(run: Training, index: int, loss: float) -> None:
    """RunFailed on every rank for a bad loss, before the weights it made are saved."""
    bad = run.loss_watch.bad_steps(index, loss)
    if not bad:
        return
    rows = [rows_of(run.schedule.step(one)) for one in bad]
    if run.loss_watch.each_step and run.ranks.is_first:
        run.write_down(bad, loss, rows)
    run.ranks.wait()
    raise failure(bad, loss, rows, run.loss_watch.each_step)


def timed(call: Callable[[Progress], None], progress: Progress) -> float:
    """Seconds that a call took: they are no part of a step's."""
    started = time.perf_counter()
    call(progress)
    return time.perf_counter() - started


@dataclass(frozen=True)
class Done:
    """What a step left to be told: read only where it is told, since that waits for the device."""

    loss_sum: Tensor
    """Over this rank's trained tokens."""
    norm: Tensor | None
    """Of the gradient; None where DeepSpeed knows it."""
    rate: float

    def loss(self, run: Training, step: Step) -> float:
        """The mean over all ranks' trained tokens."""
        return run.ranks.total(self.loss_sum.item()) / step.trained_tokens


def optimizer_step(run: Training, index: int, step: Step) -> Done | None:
    """All micro-batches of one step, then the update. None where its loss is so bad that the update was left out."""
    engine = run.engine
    rate = run.learning_rate.at(index)
    set_learning_rate(run.optimizer, rate)
    torch.manual_seed(seed_of(run.config.seed, index, run.ranks.model_copy))
    loss_sum = torch.zeros((), dtype=torch.float32, device=run.ranks.device)
    for number, dealt in enumerate(step.micro):
        run.beat("forward", index)
        loss = engine(run.share_of(run.rows, dealt))
        loss_sum += loss.detach()
        run.beat("backward")
        engine.set_gradient_accumulation_boundary(number == len(step.micro) - 1)
        # DeepSpeed averages over copies of the model; times their number makes it the sum
        engine.backward(loss * (run.ranks.model_copies / step.trained_tokens), scale_wrt_gas=False)
    if run.loss_watch.action == "skip" and left_out(run, index, Done(loss_sum, None, rate).loss(run, step)):
        return None
    run.beat("the optimizer's step")
    norm = clip_gradients(engine.module.parameters(), run.config.max_grad_norm) if clips_itself(run.choice) else None
    engine.step()
    return Done(loss_sum, norm, rate)


def left_out(run: Training, index: int, loss: float) -> bool:
    """Drop the gradients of a step with a bad loss, and write its rows down."""
    if not run.loss_watch.skips(index, loss):
        return False
    gradients.drop(run.optimizer)
    if run.ranks.is_first:
        run.write_down([index], loss, [rows_of(run.schedule.step(index))])
    return True


def rehearse(run: Training) -> None:
    """The longest batch forward and backward once, with weight 0: memory fails now, and nothing is learned from it."""
    longest = run.schedule.longest(run.ranks.data_rank)
    run.beat("the rehearsal")
    with run.memory.watched():
        run.engine.set_gradient_accumulation_boundary(False)
        run.engine.backward(run.engine(run.batch(run.rows, longest, weight=0.0)), scale_wrt_gas=False)


def seed_of(seed: int, step: int, model_copy: int) -> int:
    """Dropout's seed follows from where the run stands, so that a resumed run draws what an uninterrupted one would."""
    return (seed * 1_000_003 + step) * 65_537 + model_copy


@dataclass(frozen=True)
class Due:
    """What is to be done after a step. The last step is always logged, evaluated and saved."""

    run: Training
    progress: Progress

    def _every(self, steps: int | None) -> bool:
        last = self.progress.step == self.run.schedule.steps
        return last or (steps is not None and self.progress.step % steps == 0)

    @property
    def log(self) -> bool:
        return self._every(self.run.config.logging_steps) or self.progress.step == 1

    @property
    def evaluate(self) -> bool:
        return bool(self.run.eval_micro) and self._every(self.run.eval_every)

    @property
    def save(self) -> bool:
        return self._every(self.run.save_every)


def metrics(run: Training, progress: Progress, step: Step, done: Done, seconds: float) -> dict[str, Any]:
    """The line of metrics.jsonl for one step. Waits for the device: only called for steps that log."""
    steps = progress.step % run.config.logging_steps or run.config.logging_steps
    seconds_per_step = seconds / min(steps, progress.step)
    return {
        "step": progress.step,
        "epoch": round(step.epoch, 4),
        "loss": done.loss(run, step),
        "grad_norm": done.norm.item() if done.norm is not None else gradient_norm(run.engine),
        "learning_rate": done.rate,
        "tokens": step.tokens,
        "trained_tokens": step.trained_tokens,
        "tokens_seen": progress.tokens_seen,
        "step_seconds": seconds_per_step,
        "tokens_per_second": step.tokens / seconds_per_step,
        **({"passed_steps": progress.passed_steps} if progress.passed_steps else {}),
        **run.memory.figures(),
    }


# --- evaluation ------------------------------------------------------------------------------------------------------


def evaluate(run: Training) -> float:
    """Held-out loss: summed over all trained tokens of the held-out rows, divided by their number."""
    assert run.eval_rows is not None
    total = torch.zeros((), dtype=torch.float64, device=run.ranks.device)
    with evaluating(run.engine):
        for dealt in run.eval_micro:
            run.beat("evaluation")
            total += run.engine(run.share_of(run.eval_rows, dealt)).double()
    return run.ranks.total(total.item()) / int(run.eval_rows.trained.sum())


def judge(progress: Progress, eval_loss: float) -> None:
    """Remember the best held-out loss, and how long ago it was."""
    if progress.best_eval_loss is None or eval_loss < progress.best_eval_loss:
        progress.best_eval_loss, progress.best_step, progress.evals_without_gain = eval_loss, progress.step, 0
    else:
        progress.evals_without_gain += 1


def out_of_patience(run: Training, progress: Progress) -> bool:
    patience = run.config.early_stopping_patience
    return patience is not None and progress.evals_without_gain >= patience
