"""Nothing fits: the nearest changes that would, each with what it costs and a command to paste."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dtrain.config.origins import Loaded
from dtrain.config.schema import Config
from dtrain.errors import BadInput, DoesNotFit
from dtrain.hardware.profiles import Profile
from dtrain.models.facts import ModelFacts
from dtrain.planner.counts import DataCounts
from dtrain.planner.plan import Plan, make_plan
from dtrain.units import duration

SHORTEST_WINDOW = 256
MEMORY_KEYS = ("zero_stage", "offload_optimizer", "offload_params", "gradient_checkpointing", "cross_entropy")
ADAMS = ("adamw_torch", "adamw_torch_fused")


@dataclass(frozen=True)
class Way:
    """One change after which the run fits."""

    change: str
    cost: str
    command: str

    def as_json(self) -> dict[str, str]:
        return {"change": self.change, "cost": self.cost, "command": self.command}


@dataclass(frozen=True)
class _Try:
    """A change to try: keys to set, or another machine."""

    change: str
    loss: str
    """What it costs beside time."""
    sets: Mapping[str, Any]
    profile: Profile


def ways_out(
    plan: Plan, loaded: Loaded, facts: ModelFacts, machines: Sequence[Profile] = (), most: int = 3
) -> list[Way]:
    """Up to `most` changes that fit within the headroom, nearest first. `machines`: larger ones, smallest first."""
    found: list[Way] = []
    for one in _tries(plan, loaded, machines):
        fitting = _planned(one, loaded, facts, plan.counts)
        if fitting is not None:
            found.append(_way(one, plan, fitting))
        if len(found) == most:
            break
    return found


def require_fit(plan: Plan, loaded: Loaded, facts: ModelFacts, machines: Sequence[Profile] = ()) -> None:
    """Raise DoesNotFit, with the nearest ways out as its fix, unless the plan fits."""
    if plan.fits:
        return
    ways = ways_out(plan, loaded, facts, machines)
    raise DoesNotFit(
        plan.reasons[0],
        file=plan.config,
        key="memory",
        value=f"{plan.memory.peak:.1f} GiB",
        allowed=f"{plan.profile.gpu.memory_gib:.1f} GiB on {plan.profile.gpu.title}",
        fix="\n       ".join(f"{way.change} ({way.cost}): {way.command}" for way in ways) or None,
    )


def _tries(plan: Plan, loaded: Loaded, machines: Sequence[Profile]) -> Iterator[_Try]:
    """Nearest first: what changes no result, then the machine, then the training itself."""
    config, profile = loaded.config, plan.profile
    yield from _unpinned(config, profile)
    for one in machines:
        yield _Try(f"profile {one.name}", "another machine", {}, one)
    if config.optimizer in ADAMS and config.offload_optimizer in ("auto", "none"):
        sets = {"optimizer": "adamw_bnb_8bit"}
        yield _Try("8-bit optimizer states", "slightly noisier steps", sets, profile)
    if config.adapter is None and config.plan_as is None:
        yield _Try("train a LoRA adapter", "the base model stays frozen", {"adapter": "lora"}, profile)
        yield _Try(
            "train a QLoRA adapter",
            "the base model is frozen in 4 bits",
            {"adapter": "qlora", "load_in_4bit": True},
            profile,
        )
    window = config.sequence_len // 2
    while window >= SHORTEST_WINDOW:
        yield _Try(f"sequence_len {window}", "longer rows do not fit it", {"sequence_len": window}, profile)
        window //= 2


def _unpinned(config: Config, profile: Profile) -> Iterator[_Try]:
    """What the file fixes and could leave to the planner; each alone, then all together."""
    fixed = [key for key in MEMORY_KEYS if getattr(config, key) != "auto"]
    micro = config.micro_batch_size != "auto" and config.micro_batch_size > 1
    if micro:
        yield _Try("a smaller micro-batch, the same batch", "more accumulation", _same_batch(config), profile)
    for key in fixed:
        yield _Try(f"leave {key} to the planner", "no change of the result", {key: "auto"}, profile)
    if len(fixed) + micro > 1:
        freed: dict[str, Any] = dict.fromkeys(fixed, "auto")
        freed |= _same_batch(config) if micro else {}
        yield _Try("leave the memory settings to the planner", "no change of the result", freed, profile)


def _same_batch(config: Config) -> dict[str, Any]:
    """Micro-batch free, samples per GPU and step as before."""
    if config.global_batch_size or config.batch_size or config.micro_batch_size == "auto":
        return {"micro_batch_size": "auto"}
    per_rank = config.micro_batch_size * (config.gradient_accumulation_steps or 1)
    return {"micro_batch_size": "auto", "batch_size": per_rank, "gradient_accumulation_steps": None}


def _planned(one: _Try, loaded: Loaded, facts: ModelFacts, known: DataCounts) -> Plan | None:
    config = loaded.config.model_copy(update=dict(one.sets))
    counts = None if "sequence_len" in one.sets else known
    try:
        plan = make_plan(replace(loaded, config=config), one.profile, facts, counts)
    except BadInput:
        return None  # this change contradicts something else in the file
    return plan if plan.within_headroom else None


def _way(one: _Try, plan: Plan, fitting: Plan) -> Way:
    flags = "".join(f" --set {shlex.quote(f'{key}={_yaml(value)}')}" for key, value in one.sets.items())
    command = f"dtrain plan {shlex.quote(plan.config)} --profile {shlex.quote(one.profile.name)}{flags}"
    ratio = fitting.hours / plan.hours
    pace = f"{duration(fitting.hours * 3600)} in all, {ratio:.1f}x the time" if plan.hours > 0 else ""
    return Way(one.change, f"{one.loss}; {pace}; peak {fitting.memory.peak:.1f} GiB", command)


def _yaml(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value))
