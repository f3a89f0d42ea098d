"""The whole space of layouts is estimated; the fastest that keeps the headroom is taken, and every choice explained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from dtrain.config.origins import Loaded
from dtrain.hardware.profiles import Profile
from dtrain.models.facts import ModelFacts
from dtrain.planner.batch import Batches
from dtrain.planner.choice import Choice
from dtrain.planner.layout import setup_from
from dtrain.planner.measured import NO_BIAS, Bias
from dtrain.planner.memory import Memory, estimate_memory, scaled
from dtrain.planner.pins import Space
from dtrain.planner.setup import Setup
from dtrain.planner.throughput import StepTime, estimate_time, slowed

HEADROOM = 0.08
"""Share of the card kept free: 5 to 10 % is what practice keeps (planning_facts.md)."""
HOST_HEADROOM = 0.10
"""Share of host memory kept free for the page cache, the data and the system."""
SAME_SPEED = 0.05
"""Layouts this close to the fastest cannot be told apart by an estimate; the simplest of them is taken."""

DIMENSIONS = ("zero_stage", "offload_optimizer", "offload_params", "gradient_checkpointing", "micro_batch_size")


@dataclass(frozen=True)
class Candidate:
    choice: Choice
    setup: Setup
    memory: Memory
    time: StepTime

    @property
    def seconds_per_sample(self) -> float:
        return self.time.step_seconds / self.choice.global_batch_size

    @property
    def capacity_gib(self) -> float:
        return self.setup.profile.gpu.memory_gib

    @property
    def headroom_gib(self) -> float:
        """What is kept free on purpose."""
        return HEADROOM * self.capacity_gib

    @property
    def host_fits(self) -> bool:
        return self.memory.host_memory_gib <= self.setup.profile.host_memory_gib

    @property
    def host_within_headroom(self) -> bool:
        return self.memory.host_memory_gib <= (1 - HOST_HEADROOM) * self.setup.profile.host_memory_gib

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.capacity_gib and self.host_fits

    @property
    def within_headroom(self) -> bool:
        return self.host_within_headroom and self.memory.peak + self.headroom_gib <= self.capacity_gib

    @property
    def need(self) -> float:
        """The larger share of what there is: of the card, or of its node's host memory."""
        profile = self.setup.profile
        return max(self.memory.peak / profile.gpu.memory_gib, self.memory.host_memory_gib / profile.host_memory_gib)

    @property
    def over_gib(self) -> float:
        """How far beyond what may be used; negative: still free."""
        return self.memory.peak + self.headroom_gib - self.capacity_gib

    @property
    def complexity(self) -> tuple[int, ...]:
        """Simplest first: nothing offloaded, low stage, nothing recomputed, few accumulation steps."""
        choice = self.choice
        return (
            int(choice.offload_params != "none"),
            int(choice.offload_optimizer != "none"),
            choice.zero_stage,
            int(choice.gradient_checkpointing != "none"),
            choice.gradient_accumulation_steps,
        )


@dataclass(frozen=True)
class Search:
    """Every layout that was looked at, and the one that was taken."""

    best: Candidate
    candidates: tuple[Candidate, ...]


def search(
    loaded: Loaded, facts: ModelFacts, profile: Profile, space: Space, batches: Batches, bias: Bias = NO_BIAS
) -> Search:
    """Estimate all layouts and take one. When none is within the headroom, the one nearest to fitting is `best`."""
    estimated = (_candidate(loaded, facts, profile, one) for one in layouts(loaded, space, batches))
    candidates = tuple(estimated if bias == NO_BIAS else (_biased(one, bias) for one in estimated))
    return Search(best_of(candidates), candidates)


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """The simplest of the fastest within the headroom; then whatever fits at all; then the smallest."""
    for able in (
        [one for one in candidates if one.within_headroom],
        [one for one in candidates if one.fits],
    ):
        if able:
            fastest = min(one.seconds_per_sample for one in able)
            close = [one for one in able if one.seconds_per_sample <= fastest * (1 + SAME_SPEED)]
            return min(close, key=lambda one: (one.complexity, one.seconds_per_sample))
    return min(candidates, key=lambda one: (one.need, one.complexity))


def layouts(loaded: Loaded, space: Space, batches: Batches) -> Iterator[Choice]:
    """All combinations that make sense."""
    config = loaded.config
    rows = product(
        space.zero_stages, space.offload_optimizer, space.offload_params, space.checkpointing, space.attention,
        space.cross_entropy, batches.pairs,
    )  # fmt: skip
    for stage, optimizer, params, checkpointing, attention, cross_entropy, (micro, accumulation) in rows:
        if (optimizer != "none" and stage == 0) or (params != "none" and stage != 3):
            continue
        if params != "none" and optimizer == "none" and len(space.offload_optimizer) > 1:
            continue  # DeepSpeed offloads parameters only beside the optimizer's states
        yield Choice(
            zero_stage=stage,
            offload_optimizer=optimizer,
            offload_params=params,
            micro_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            global_batch_size=batches.global_batch(micro, accumulation),
            gradient_checkpointing=checkpointing,
            sequence_parallel_size=config.sequence_parallel_size,
            attention=attention,
            cross_entropy=cross_entropy,
            precision=space.precision,
            optimizer=config.optimizer,
            adapter=config.adapter,
            sequence_len=config.sequence_len,
        )


def _biased(one: Candidate, bias: Bias) -> Candidate:
    return replace(one, memory=scaled(one.memory, bias.memory), time=slowed(one.time, bias.time))


def _candidate(loaded: Loaded, facts: ModelFacts, profile: Profile, choice: Choice) -> Candidate:
    setup = setup_from(loaded.config, facts, profile, choice)
    return Candidate(choice, setup, estimate_memory(setup), estimate_time(setup))
