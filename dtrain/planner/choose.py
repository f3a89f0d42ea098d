"""The whole space of layouts is estimated; the fastest that keeps the headroom is taken, and every choice explained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product

from dtrain.config.origins import Loaded
from dtrain.errors import BadInput
from dtrain.hardware.profiles import Profile
from dtrain.models.facts import ModelFacts
from dtrain.planner.batch import Batches, batches
from dtrain.planner.choice import Choice
from dtrain.planner.layout import setup_from
from dtrain.planner.measured import NO_BIAS, Bias
from dtrain.planner.memory import HOST_HEADROOM, Memory, estimate_memory, scaled
from dtrain.planner.pins import ATTENTION, CHECKPOINTING, CROSS_ENTROPY, Space
from dtrain.planner.setup import Setup
from dtrain.planner.throughput import StepTime, estimate_time, slowed

HEADROOM = 0.08
"""Share of the card kept free: 5 to 10 % is what practice keeps (planning_facts.md)."""
SAME_SPEED = 0.02
"""Layouts this close to the fastest cannot be told apart by an estimate; the simplest of them is taken."""
CPU_SAME_SPEED = 0.05
"""The same on a CPU, whose ranks share cores and memory."""

DIMENSIONS = (
    "zero_stage", "offload_optimizer", "offload_params", "gradient_checkpointing", "micro_batch_size", "cross_entropy",
    "attention", "sequence_parallel_size",
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """One layout and its memory. Its time is worked out when somebody asks: most layouts do not fit."""

    choice: Choice
    setup: Setup
    memory: Memory
    bias: Bias = NO_BIAS
    """Which `memory` contains already."""

    @cached_property
    def time(self) -> StepTime:
        exact = estimate_time(self.setup)
        return exact if self.bias == NO_BIAS else slowed(exact, self.bias.time)

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
        """Simplest first: usual kernels, nothing offloaded, low stage, little recomputed, few accumulation steps."""
        choice = self.choice
        return (
            _place(ATTENTION, choice.attention),
            _place(CROSS_ENTROPY, choice.cross_entropy),
            choice.sequence_parallel_size,
            int(choice.offload_params != "none"),
            int(choice.offload_optimizer != "none"),
            choice.zero_stage,
            CHECKPOINTING.index(choice.gradient_checkpointing),
            choice.gradient_accumulation_steps,
        )


def _place(order: Sequence[str], value: str) -> int:
    """In the planner's order of preference; what it never chooses by itself comes last."""
    return order.index(value) if value in order else len(order)


@dataclass(frozen=True)
class Search:
    """Every layout that was looked at, and the one that was taken."""

    best: Candidate
    candidates: tuple[Candidate, ...]
    batch: str
    """What was said about the batch."""


def search(loaded: Loaded, facts: ModelFacts, profile: Profile, space: Space, bias: Bias = NO_BIAS) -> Search:
    """Estimate all layouts and take one; more ranks to a row of tokens only where nothing fits without.

    When none is within the headroom, the one nearest to fitting is `best`. BadInput where batches do not divide.
    """
    seen: list[Candidate] = []
    first = batches(loaded, profile, space.sequence_parallel[0])
    estimate = partial(_candidate, loaded, facts, profile, bias)
    for sizes in (first, *_shared_rows(loaded, profile, space, first)):
        seen += _estimated(loaded, space, sizes, estimate)
        best = best_of(seen)
        if best.within_headroom:
            break
    return Search(best, tuple(seen), first.said)


def _estimated(
    loaded: Loaded, space: Space, sizes: Batches, estimate: Callable[[Choice], Candidate]
) -> list[Candidate]:
    """All layouts with the first attention. Back ends keep their order whatever the layout: another one is tried where
    the first one leads to, and on all layouts only if it is faster or smaller there."""
    usual, *others = space.attention
    seen = [estimate(one) for one in layouts(loaded, space, sizes, usual)]
    if not seen:
        raise _nothing_to_offload_at(loaded, space)
    best = best_of(seen)
    for attention in others:
        rival = estimate(replace(best.choice, attention=attention))
        better = rival.memory.peak < best.memory.peak or rival.seconds_per_sample < best.seconds_per_sample
        seen += [estimate(one) for one in layouts(loaded, space, sizes, attention)] if better else [rival]
    return seen


def _nothing_to_offload_at(loaded: Loaded, space: Space) -> BadInput:
    """What was asked to be offloaded, at stages that have nothing of it to offload: all that `layouts` leaves out."""
    key, least = ("offload_params", 3) if space.offload_params[0] != "none" else ("offload_optimizer", 1)
    origin = loaded.origin(key)
    stages = ", ".join(map(str, space.zero_stages))
    return BadInput(
        f"needs ZeRO stage {least} or more, and the rest of the file leaves stage {stages}",
        file=origin.file, line=origin.line, key=key, value=getattr(loaded.config, key), fix=f"{key}: none",
    )  # fmt: skip


def _shared_rows(loaded: Loaded, profile: Profile, space: Space, first: Batches) -> Iterator[Batches]:
    """The same global batch with larger groups of ranks to a row, small groups first."""
    for size in space.sequence_parallel[1:]:
        try:
            sizes = batches(loaded, profile, size)
        except BadInput:  # the batch that was asked for cannot be split so
            continue
        if sizes.global_batch(*sizes.pairs[0]) == first.global_batch(*first.pairs[0]):
            yield sizes


def same_speed(profile: Profile) -> float:
    """Share of its time by which a layout may be slower and still count as fast."""
    return CPU_SAME_SPEED if profile.is_cpu else SAME_SPEED


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """The simplest of the fastest within the headroom; then whatever fits at all; then the smallest."""
    for able in (
        [one for one in candidates if one.within_headroom],
        [one for one in candidates if one.fits],
    ):
        if able:
            fastest = min(one.seconds_per_sample for one in able)
            slowest = fastest * (1 + same_speed(able[0].setup.profile))
            close = [one for one in able if one.seconds_per_sample <= slowest]
            return min(close, key=lambda one: (one.complexity, one.seconds_per_sample))
    return min(candidates, key=lambda one: (one.need, one.complexity))


def layouts(loaded: Loaded, space: Space, sizes: Batches, attention: str) -> Iterator[Choice]:
    """All combinations that make sense, with one attention."""
    config = loaded.config
    rows = product(
        space.zero_stages, space.offload_optimizer, space.offload_params, space.checkpointing, space.cross_entropy,
        sizes.pairs,
    )  # fmt: skip
    for stage, optimizer, params, checkpointing, cross_entropy, (micro, accumulation) in rows:
        if (optimizer != "none" and stage == 0) or ((params != "none" or optimizer == "nvme") and stage != 3):
            continue
        if params != "none" and optimizer == "none" and len(space.offload_optimizer) > 1:
            continue  # DeepSpeed offloads parameters only beside the optimizer's states
        yield Choice(
            zero_stage=stage,
            offload_optimizer=optimizer,
            offload_params=params,
            micro_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            global_batch_size=sizes.global_batch(micro, accumulation),
            gradient_checkpointing=checkpointing,
            sequence_parallel_size=sizes.sequence_parallel,
            attention=attention,
            cross_entropy=cross_entropy,
            precision=space.precision,
            optimizer=config.optimizer,
            adapter=config.adapter,
            sequence_len=config.sequence_len,
        )


def _candidate(loaded: Loaded, facts: ModelFacts, profile: Profile, bias: Bias, choice: Choice) -> Candidate:
    setup = setup_from(loaded.config, facts, profile, choice)
    memory = estimate_memory(setup)
    return Candidate(choice, setup, memory if bias == NO_BIAS else scaled(memory, bias.memory), bias)
