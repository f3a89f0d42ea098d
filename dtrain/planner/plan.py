"""Every number that follows from a config on a machine, and a sentence for each choice: the Plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from typing import Any

from dtrain import __version__
from dtrain.config.origins import Loaded
from dtrain.hardware.prices import offers
from dtrain.hardware.profiles import Profile
from dtrain.models.facts import ModelFacts
from dtrain.planner import nvme
from dtrain.planner.choice import Choice
from dtrain.planner.choose import Candidate, search
from dtrain.planner.cost import RunCounts, RunTime, checkpoint_seconds, estimate_run
from dtrain.planner.counts import DataCounts, counted_before, estimate_counts
from dtrain.planner.explain import Neighbour, neighbours, reasons
from dtrain.planner.measured import NO_BIAS, Bias
from dtrain.planner.memory import TERMS, Memory
from dtrain.planner.pins import space_of
from dtrain.planner.positions import position_warnings
from dtrain.planner.sparse_attention import forgotten
from dtrain.planner.throughput import StepTime, estimate_time

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Schedule:
    steps: int
    tokens: int
    source: str
    """`exact` (data at hand) or `estimated`."""


@dataclass(frozen=True)
class Cost:
    provider: str | None
    usd_per_hour: float
    total: float
    priced_on: str | None


@dataclass(frozen=True)
class Plan:
    """What plan.json holds; `as_json` is the contract's document."""

    config: str
    """The file it was made from."""
    facts: ModelFacts
    profile: Profile
    choice: Choice
    memory: Memory
    fits: bool
    within_headroom: bool
    headroom_gib: float
    trainable_parameters: int
    time: StepTime
    schedule: Schedule
    run: RunTime
    cost: Cost | None
    counts: DataCounts
    warnings: tuple[str, ...]
    reasons: tuple[str, ...]
    bias: Bias
    """By which memory and time are multiplied already."""
    neighbours: tuple[Neighbour, ...]
    """The best layouts that were not taken."""
    candidate: Candidate
    """The layout behind it, with everything the estimate was made from."""
    layouts: int
    """How many were looked at."""

    @property
    def hours(self) -> float:
        """Of the whole run, start-up, evaluations and checkpoints included."""
        return self.run.hours

    @property
    def accepted(self) -> bool:
        """May start. The planner itself keeps the reserve; a file that leaves it no choice may eat into it."""
        return self.within_headroom or (self.fits and self.layouts == 1)

    def as_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "versions": versions(),
            "config": self.config,
            "warnings": list(self.warnings),
            "reasons": list(self.reasons),
            "bias": self.bias.as_json(),
            "neighbours": [one.as_json() for one in self.neighbours],
            "model": {
                "name": self.facts.name,
                "hidden_size": self.facts.hidden_size,
                "parameters": self.facts.parameters,
                "trainable_parameters": self.trainable_parameters,
            },
            "profile": _profile_json(self.profile),
            "fits": self.fits,
            "within_headroom": self.within_headroom,
            "choice": self.choice.as_json(),
            "memory_gib": _memory_json(self.memory, self.headroom_gib),
            "peak_phase": self.memory.peak_phase,
            "phases": [{"name": one.name, "terms": _rounded(one.terms)} for one in self.memory.phases],
            "host_memory_gib": _round(self.memory.host_memory_gib),
            **_rounded(nvme.as_json(self.candidate.setup)),
            "throughput": {
                "step_seconds": _round(self.time.step_seconds),
                "tokens_per_second": _round(self.time.tokens_per_second),
                "tokens_per_second_per_gpu": _round(self.time.tokens_per_second_per_gpu),
                "mfu": _round(self.time.mfu),
            },
            "schedule": {
                "steps": self.schedule.steps,
                "tokens": self.schedule.tokens,
                "source": self.schedule.source,
                "step_seconds": _round(self.run.train_seconds / self.schedule.steps),
            },
            "hours": _round(self.hours),
            "billed_hours": _round(self.run.billed_hours),
            "start_seconds": _round(self.run.start_seconds),
            "save_seconds": _round(checkpoint_seconds(self.candidate.setup)),
            "cost_usd": _cost_json(self.cost),
        }


def make_plan(
    loaded: Loaded,
    profile: Profile,
    facts: ModelFacts,
    counts: DataCounts | None = None,
    bias: Bias = NO_BIAS,
    provider: str | None = None,
) -> Plan:
    """Search, choose, explain. BadInput(s) for what cannot be planned; a plan that does not fit has `fits` False.

    `counts` are the data room's exact ones; without them they are estimated from the files.
    `bias`: what this machine's own runs say of such plans. `provider`: whose price counts, where that is known.
    """
    space = space_of(loaded, profile, facts)
    found = search(loaded, facts, profile, space, bias)
    best = found.best
    if profile.is_cpu:  # a plan for this machine
        nvme.refuse_bad_drive(loaded, best.setup)
    counts = counts or counted_before(loaded.config) or estimate_counts(loaded.config, loaded.file)
    schedule = schedule_of(loaded, counts, best)
    run = run_time(loaded, counts, schedule, best, bias)
    return Plan(
        config=str(loaded.file or "<text>"),
        facts=facts,
        profile=profile,
        choice=best.choice,
        memory=best.memory,
        fits=best.fits,
        within_headroom=best.within_headroom,
        headroom_gib=best.headroom_gib,
        trainable_parameters=best.setup.trained_parameters,
        time=best.time,
        schedule=schedule,
        run=run,
        cost=cost_of(profile, run.hours, provider),
        counts=counts,
        warnings=(
            *profile.notes,
            *loaded.notes,
            *position_warnings(loaded, facts),
            *forgotten(loaded.config, facts),
            *counts.warnings,
        ),
        reasons=(
            *reasons(found, space),
            *nvme.words(best.setup, loaded.config),
            *((bias.words,) if bias.words else ()),
        ),
        bias=bias,
        neighbours=neighbours(found, space),
        candidate=best,
        layouts=len(found.candidates),
    )


# --- time and money -----------------------------------------------------------------------------------------------


def schedule_of(loaded: Loaded, counts: DataCounts, best: Candidate) -> Schedule:
    """Optimizer steps and real tokens of the whole run. An epoch's last step may be smaller."""
    config = loaded.config
    per_epoch = math.ceil(counts.slots / best.choice.global_batch_size)
    steps = max(1, math.ceil(round(config.num_epochs * per_epoch, 6)))
    if config.max_steps is not None:
        steps = config.max_steps
    tokens = round(counts.tokens * steps / per_epoch)
    return Schedule(steps, tokens, "exact" if counts.exact else "estimated")


def run_time(loaded: Loaded, counts: DataCounts, schedule: Schedule, best: Candidate, bias: Bias = NO_BIAS) -> RunTime:
    """Steps at the real mean length of a slot, and what comes before, between and after them."""
    batch = best.choice.global_batch_size
    mean = max(1, min(best.setup.sequence_len, round(schedule.tokens / (schedule.steps * batch))))
    step = estimate_time(replace(best.setup, sequence_len=mean)).step_seconds * bias.time
    eval_slots = math.ceil(counts.eval_rows * counts.slots / max(1, counts.rows))
    per_epoch = math.ceil(counts.slots / batch)
    told = RunCounts(steps=schedule.steps, steps_per_epoch=per_epoch, eval_rows=eval_slots, mean_tokens=mean)
    return estimate_run(loaded.config, best.setup, told, step)


def cost_of(profile: Profile, hours: float, provider: str | None = None) -> Cost | None:
    """At the user's own price, else at the cheapest in the dated table, of `provider` where it has one; None where
    nobody rents this machine."""
    if profile.usd_per_hour is not None:
        return Cost(profile.name, profile.usd_per_hour, profile.usd_per_hour * hours, None)
    billed = sorted((one for one in offers(profile) if one.kind != "free"), key=lambda one: one.kind == "notebook")
    if not billed:
        return None
    best = next((one for one in billed if one.provider == provider), billed[0])
    return Cost(best.provider, best.usd_per_hour, best.usd_per_hour * hours, best.priced_on)


# --- JSON ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _installed() -> tuple[tuple[str, str | None], ...]:
    return tuple((name, _version(name)) for name in ("torch", "deepspeed", "transformers"))


def versions() -> dict[str, str | None]:
    """What a prediction is for; None where a part is not installed on this machine."""
    return {"dtrain": __version__, **dict(_installed())}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _profile_json(profile: Profile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "gpu": profile.gpu.name,
        "gpus": profile.gpus,
        "gpus_per_node": profile.gpus_per_node,
        "nodes": profile.nodes,
        "capacity_gib": profile.gpu.memory_gib,
    }


def _memory_json(memory: Memory, headroom_gib: float) -> dict[str, float | None]:
    figures = {
        **{name: memory.terms[name] for name in TERMS},
        "peak_allocated": memory.peak_allocated,
        "peak_reserved": memory.peak_reserved,
        "peak_smi": memory.peak_smi,
        "peak": memory.peak,
        "peak_low": memory.peak_low,
        "peak_high": memory.peak_high,
        "headroom": headroom_gib,
    }
    return _rounded(figures)


def _cost_json(cost: Cost | None) -> dict[str, Any]:
    if cost is None:
        return {"provider": None, "usd_per_hour": None, "total": None, "priced_on": None}
    return {
        "provider": cost.provider,
        "usd_per_hour": cost.usd_per_hour,
        "total": round(cost.total, 2),
        "priced_on": cost.priced_on,
    }


def _rounded(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _round(value) for name, value in figures.items()}


def _round(value: float | None) -> float | None:
    """Nine significant digits: no figure is known better, and sums still add up to 1e-6."""
    return None if value is None else float(f"{value:.9g}")
