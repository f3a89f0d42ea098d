"""Nothing fits: the nearest changes that would, each with what it costs and a command to paste."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from dtrain.config.origins import Loaded
from dtrain.config.schema import Config
from dtrain.errors import BadInput, DoesNotFit
from dtrain.hardware.gpus import GPUS, Gpu, shortest
from dtrain.hardware.machines import largest_usual
from dtrain.hardware.profiles import Profile, resolve_profile
from dtrain.models.facts import ModelFacts
from dtrain.planner.measured import NO_BIAS
from dtrain.planner.plan import Plan, make_plan
from dtrain.units import duration

SHORTEST_WINDOW = 256
MEMORY_KEYS = ("zero_stage", "offload_optimizer", "offload_params", "gradient_checkpointing", "cross_entropy")
INSISTED_KEYS = ("attention", "sequence_parallel_size", "micro_batch_size", "global_batch_size")
ADAMS = ("adamw_torch", "adamw_torch_fused")
MORE_NODES = (4, 16)


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
    said_kind: str = ""

    @property
    def kind(self) -> str:
        """Of changes of one kind only the first that fits is told."""
        return self.said_kind or ",".join(self.sets)

    def like_any(self, told: Sequence[_Try]) -> bool:
        """Of the same kind as one that was told, or the same in other words."""
        return any(self.kind == one.kind or (self.sets, self.profile) == (one.sets, one.profile) for one in told)


def ways_out(plan: Plan, loaded: Loaded, facts: ModelFacts, most: int = 3) -> list[Way]:
    """Up to `most` changes that fit within the headroom, nearest first; of larger machines the first that does."""
    found = _without_reserve(plan, loaded, facts)
    told: list[_Try] = []
    for one in chain(_tries(plan, loaded), _last_resorts(plan, loaded)):
        if len(found) == most:
            break
        fitting = None if one.like_any(told) else _planned(one, loaded, facts, plan)
        if fitting is not None:
            told.append(one)
            found.append(_way(one, plan, fitting, loaded.sets))
    return found


def require_fit(plan: Plan, loaded: Loaded, facts: ModelFacts) -> None:
    """Raise DoesNotFit, with the nearest ways out as its fix, unless the plan fits."""
    if plan.accepted:
        return
    ways = ways_out(plan, loaded, facts)
    raise DoesNotFit(
        plan.reasons[0],
        file=plan.config,
        key="memory",
        value=f"{plan.memory.peak:.1f} GiB",
        allowed=f"{plan.profile.gpu.memory_gib:.1f} GiB on {plan.profile.gpu.title}",
        fix="\n       ".join(f"{way.change} ({way.cost}): {way.command}" for way in ways) or None,
    )


def _without_reserve(plan: Plan, loaded: Loaded, facts: ModelFacts) -> list[Way]:
    """The layout itself, every figure of it said by the person, where that is accepted."""
    choice = plan.choice
    pinned = {key: getattr(choice, key) for key in (*MEMORY_KEYS, *INSISTED_KEYS)}
    pinned |= {"batch_size": None, "gradient_accumulation_steps": None}
    if not plan.fits or not _planned_with(pinned, loaded, facts, plan).accepted:
        return []
    command = _command(plan.config, plan.profile, pinned, loaded.sets)
    return [Way("insist, without the reserve", "it may run out of memory", command)]


def _planned_with(sets: Mapping[str, Any], loaded: Loaded, facts: ModelFacts, plan: Plan) -> Plan:
    config = loaded.config.model_copy(update=dict(sets))
    return make_plan(replace(loaded, config=config), plan.profile, facts, plan.counts, plan.bias)


def _command(config: str, profile: Profile, sets: Mapping[str, Any], said: Sequence[str]) -> str:
    """The command to paste. `said`: the person's own flags, repeated where the way out does not overrule them."""
    kept = [flag for flag in said if flag.partition("=")[0].strip() not in sets]
    flags = "".join(
        f" --set {shlex.quote(flag)}" for flag in [*kept, *(f"{key}={_yaml(value)}" for key, value in sets.items())]
    )
    return f"dtrain plan {shlex.quote(config)} --profile {shlex.quote(profile.said or profile.name)}{flags}"


def _tries(plan: Plan, loaded: Loaded) -> Iterator[_Try]:
    """Nearest first: what changes no result, then the machine, then the training itself."""
    config, profile = loaded.config, plan.profile
    yield from _unpinned(config, profile)
    for one in [] if profile.said else larger_machines(profile):  # a machine of one's own is not exchanged at once
        yield _machine(one)
    if config.optimizer in ADAMS and config.offload_optimizer in ("auto", "none"):
        sets = {"optimizer": "adamw_bnb_8bit"}
        yield _Try("8-bit optimizer states", "slightly noisier steps", sets, profile)
    for change, loss, sets in _adapters(config):
        yield _Try(change, loss, sets, profile)
    window = config.sequence_len // 2
    while window >= SHORTEST_WINDOW:
        yield _Try(f"sequence_len {window}", "longer rows do not fit it", {"sequence_len": window}, profile)
        window //= 2


def _machine(profile: Profile, kind: str = "machine") -> _Try:
    return _Try(f"profile {profile.name}", "another machine", {}, profile, kind)


def _adapters(config: Config) -> list[tuple[str, str, dict[str, Any]]]:
    """What is said of them, what they cost, their keys; none where the file has one, or another framework's way."""
    if config.adapter is not None or config.plan_as is not None:
        return []
    return [
        ("train a LoRA adapter", "the base model stays frozen", {"adapter": "lora"}),
        ("train a QLoRA adapter", "the base model is frozen in 4 bits", {"adapter": "qlora", "load_in_4bit": True}),
    ]


def _last_resorts(plan: Plan, loaded: Loaded) -> Iterator[_Try]:
    """Where all else gave too few ways: a machine more of each card, then an adapter on a larger machine."""
    machines = larger_machines(plan.profile)
    for one in machines:
        yield _machine(one, shortest(one.gpu))
    for change, loss, sets in _adapters(loaded.config):
        for one in machines:
            yield _Try(f"{change} on {one.name}", loss, sets, one, f"{change} elsewhere")


def larger_machines(profile: Profile) -> list[Profile]:
    """More of the same cards, then cards with more memory, then many nodes of each; the card of a person's own machine
    counts as the catalogue's that fills its gaps."""
    if profile.is_cpu:
        return []
    same = [gpu for gpu in (GPUS.get(profile.gpu.like or profile.gpu.name),) if gpu]
    bigger = sorted(
        (gpu for gpu in GPUS.values() if gpu.memory_gib > profile.gpu.memory_gib and gpu.support == "full"),
        key=lambda gpu: gpu.memory_gib,
    )
    names = [name for gpu in same for name in _more_of(gpu, profile)]
    names += [f"{shortest(gpu)}x{min(profile.gpus_per_node, largest_usual(gpu.name))}" for gpu in bigger]
    nodes = [f"x{count * profile.nodes}" for count in MORE_NODES]
    names += [f"{shortest(gpu)}x{largest_usual(gpu.name)}{more}" for gpu in (*same, *bigger) for more in nodes]
    return [resolve_profile(name) for name in names]


def _more_of(gpu: Gpu, profile: Profile) -> list[str]:
    """Of one card: more in the node, then twice the nodes."""
    card, usual = shortest(gpu), largest_usual(gpu.name)
    counts = [count for count in (2, 4, 8) if profile.gpus_per_node < count <= usual]
    wider = [f"{card}x{count}" for count in counts] if profile.nodes == 1 else []
    return [*wider, f"{card}x{usual}x{2 * profile.nodes}"]


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


def _planned(one: _Try, loaded: Loaded, facts: ModelFacts, plan: Plan) -> Plan | None:
    config = loaded.config.model_copy(update=dict(one.sets))
    counts = None if "sequence_len" in one.sets else plan.counts
    bias = plan.bias if one.profile == plan.profile else NO_BIAS
    try:
        fitting = make_plan(replace(loaded, config=config), one.profile, facts, counts, bias)
    except BadInput:
        return None  # this change contradicts something else in the file
    return fitting if fitting.within_headroom else None


def _way(one: _Try, plan: Plan, fitting: Plan, said: Sequence[str]) -> Way:
    ratio = fitting.hours / plan.hours
    pace = f"{duration(fitting.hours * 3600)} in all, {ratio:.1f}x the time" if plan.hours > 0 else ""
    return Way(
        one.change,
        f"{one.loss}; {pace}; peak {fitting.memory.peak:.1f} GiB",
        _command(plan.config, one.profile, one.sets, said),
    )


def _yaml(value: Any) -> str:
    if isinstance(value, bool):  # 1 and 0 are ZeRO stages, and equal to them
        return "true" if value else "false"
    return "null" if value is None else str(value)
