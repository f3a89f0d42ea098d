"""Two steps at the longest batch before the first one, measured beside the plan, and undone to the last bit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dtrain.train import gradients
from dtrain.train.checkpoint import States
from dtrain.train.engine import clip_gradients, clips_itself
from dtrain.train.loop import Training
from dtrain.train.partitions import Partition, partitions, take_over
from dtrain.units import duration, memory

MEMORY_STEPS = 2
"""Optimizer states come with the first step, and stand beside activations in the second."""


@dataclass(frozen=True)
class Snapshot:
    """What training changes on this rank, as it was: on the host."""

    kept: Sequence[tuple[Tensor, Mapping[str, Any]]]
    scaler: Mapping[str, float]
    random: Tensor

    @classmethod
    def of(cls, states: States) -> Snapshot:
        mine = partitions(states.model, states.optimizer)
        kept = [(_copied(one.master), {kind: _copied(value) for kind, value in one.states.items()}) for one in mine]
        return cls(kept, states.scaler_numbers(), torch.get_rng_state())

    def put_back(self, states: States) -> None:
        """A collective: weights are gathered again from the masters."""
        gradients.drop(states.optimizer)
        with torch.no_grad():
            for one, (master, before) in zip(partitions(states.model, states.optimizer), self.kept, strict=True):
                one.master.copy_(master)
                _restore(one, before)
            take_over(states.optimizer)
        states.set_scaler_numbers(self.scaler)
        torch.set_rng_state(self.random)


def _copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if torch.is_tensor(value) else value


def _restore(partition: Partition, before: Mapping[str, Any]) -> None:
    """In place where there was a state; without one, the optimizer makes it anew at its first step."""
    for kind in partition.states.keys() - before.keys():
        del partition.states[kind]
    for kind, value in before.items():
        if torch.is_tensor(value):
            partition.states[kind].copy_(value)
        else:
            partition.states[kind] = value


def probe(run: Training, states: States) -> dict[str, float]:
    """What the longest batch took on this rank: peaks in GiB, seconds of a whole step, tokens of a micro-batch."""
    before = Snapshot.of(states)
    for _ in range(MEMORY_STEPS):
        with run.memory.watched():
            seconds = one_step(run)
    if run.ranks.device.type == "cpu":  # watching costs time there
        seconds = one_step(run)
    before.put_back(states)
    longest = run.schedule.longest(run.ranks.data_rank)
    tokens = sum(int(run.rows.lengths[row]) for slot in longest for row in slot)
    return {**run.memory.figures(), "step_seconds": seconds, "longest_tokens": tokens}


def one_step(run: Training) -> float:
    """Seconds of a step whose every micro-batch is the longest; with weight 0, so that even its gradient is nothing."""
    engine, longest = run.engine, run.schedule.longest(run.ranks.data_rank)
    run.ranks.wait()
    started = time.perf_counter()
    for number in range(run.choice.gradient_accumulation_steps):
        run.beat("the probe")
        engine.set_gradient_accumulation_boundary(number == run.choice.gradient_accumulation_steps - 1)
        engine.backward(engine(run.batch(run.rows, longest, weight=0.0)), scale_wrt_gas=False)
    if clips_itself(run.choice):
        clip_gradients(engine.module.parameters(), run.config.max_grad_norm)
    engine.step()
    if run.ranks.device.type == "cuda":
        torch.cuda.synchronize()
    run.ranks.wait()
    return time.perf_counter() - started


def compared(plan: Mapping[str, Any], told: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """probe.json: the plan, for full windows, beside the worst of all ranks."""
    worst = {name: max(one[name] for one in told) for name in told[0]}
    choice, figures = plan["choice"], plan["memory_gib"]
    planned = {
        "peak_allocated_gib": figures["peak_allocated"], "peak_reserved_gib": figures["peak_reserved"],
        "step_seconds": plan["throughput"]["step_seconds"],
        "longest_tokens": choice["micro_batch_size"] * choice["sequence_len"],
    }  # fmt: skip
    measured = {
        "peak_allocated_gib": worst["allocated_gib"], "peak_reserved_gib": worst["reserved_gib"],
        "step_seconds": worst["step_seconds"], "longest_tokens": int(worst["longest_tokens"]),
    }  # fmt: skip
    return {"schema_version": 1, "planned": planned, "measured": measured}


def words(document: Mapping[str, Any], hours: float) -> str:
    """`hours`: of the whole run, as planned."""
    planned, measured = document["planned"], document["measured"]
    ratio = measured["step_seconds"] / planned["step_seconds"]
    return (
        f"probe, at {measured['longest_tokens']:,} tokens a micro-batch (planned for {planned['longest_tokens']:,}): "
        f"peak {memory(measured['peak_allocated_gib'])}, planned {memory(planned['peak_allocated_gib'])}; "
        f"a step {duration(measured['step_seconds'])}, planned {duration(planned['step_seconds'])}"
        + (f"; at this pace {duration(hours * 3600 * ratio)} in all" if ratio > SLOWER else "")
    )


SLOWER = 1.2
"""A difference that is worth to be told in hours."""
