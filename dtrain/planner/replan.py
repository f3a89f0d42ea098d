"""A run was out of memory: the next layout, with what the failure taught. Global batch and window stay as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from dtrain.config.origins import Loaded
from dtrain.errors import BadInput
from dtrain.hardware.profiles import Profile
from dtrain.models.facts import ModelFacts
from dtrain.planner.choice import Choice
from dtrain.planner.measured import Bias
from dtrain.planner.memory import HOST_BASE_GIB, HOST_HEADROOM
from dtrain.planner.nearest import MEMORY_KEYS
from dtrain.planner.plan import Plan, make_plan

LAYOUT_KEYS = ("micro_batch_size", *MEMORY_KEYS)
"""Keys of the config that change how a step is computed, and not what it computes."""


@dataclass(frozen=True)
class Shortage:
    """What one rank held and asked for when memory ran out, counted as `peak_allocated` is."""

    had_gib: float
    asked_gib: float
    """0 where the error does not tell."""
    place: str
    """Where in a step; `loading` before there was one."""
    step: int
    """Optimizer steps done."""
    kind: Literal["device", "host"] = "device"
    """Which memory. Of the host `had_gib` is what all ranks of the machine held, libraries and all."""

    @property
    def needed_gib(self) -> float:
        """At least: what would have come after is not known."""
        return self.had_gib + self.asked_gib

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Shortage:
        """A missing key is a KeyError."""
        return cls(*(told[name] for name in cls.__dataclass_fields__))


@dataclass(frozen=True)
class Layout:
    """A config on a machine, as a run has it."""

    loaded: Loaded
    profile: Profile
    facts: ModelFacts
    plan: Mapping[str, Any]
    """plan.json."""

    @property
    def choice(self) -> Choice:
        return Choice.from_json(self.plan["choice"])


def next_plan(layout: Layout, shortage: Shortage, tried: Collection[Choice] = ()) -> Plan | None:
    """The best layout within what the rank really had: first another micro-batch, then all that changes no result.

    None where nothing fits that is not among `tried`, and where a DeepSpeed file of the person's own fixes the layout.
    """
    if layout.loaded.config.deepspeed is not None:
        return None
    known = (layout.choice, *tried)
    for freed in _freed(layout):
        config = layout.loaded.config.model_copy(update=freed)
        run = replace(layout, loaded=replace(layout.loaded, config=config))
        try:
            plan = _within_less_of_the_host(run, known) if shortage.kind == "host" else _within_what_was(run, shortage)
        except BadInput:  # it contradicts something else in the file
            continue
        if plan is not None and plan.within_headroom and plan.choice not in known:
            return plan
    return None


def _within_what_was(layout: Layout, shortage: Shortage) -> Plan:
    profile, bias = _as_shown(layout, shortage)
    return make_plan(layout.loaded, profile, layout.facts, bias=bias)


def _within_less_of_the_host(layout: Layout, known: Collection[Choice]) -> Plan | None:
    """The kernel does not tell how much was missing: the next layout that is planned to take less than those known."""
    taken = float(layout.plan["host_memory_gib"])
    while True:
        profile = replace(layout.profile, host_memory_gib=_room_for_less(taken, layout.profile))
        plan = make_plan(layout.loaded, profile, layout.facts, bias=_bias_of(layout))
        if plan.choice not in known or not plan.within_headroom or plan.memory.host_memory_gib >= taken:
            return plan
        taken = plan.memory.host_memory_gib


def _room_for_less(taken_gib: float, profile: Profile) -> float:
    """Of the host, so that a layout within its headroom takes clearly less beside the processes' own memory."""
    processes = HOST_BASE_GIB * profile.gpus_per_node
    less = processes + (1 - HOST_HEADROOM) * max(0.0, taken_gib - processes)
    return min(profile.host_memory_gib, less / (1 - HOST_HEADROOM))


def _as_shown(layout: Layout, shortage: Shortage) -> tuple[Profile, Bias]:
    """The card with no more memory than could be had, and plans as much too low as this one was."""
    memory, before = layout.plan["memory_gib"], _bias_of(layout)
    planned = memory["peak_allocated"]
    ratio = max(1.0, shortage.needed_gib / planned)
    beside = memory["peak_reserved"] / planned * shortage.had_gib + memory["peak_smi"] - memory["peak_reserved"]
    gpu = replace(layout.profile.gpu, memory_gib=min(layout.profile.gpu.memory_gib, beside))
    words = (
        f"memory: {shortage.had_gib:.3g} GiB could be had where {shortage.needed_gib:.3g} were needed, × {ratio:.2f}"
    )
    return replace(layout.profile, gpu=gpu), replace(before, memory=before.memory * ratio, words=words)


def _bias_of(layout: Layout) -> Bias:
    """What the plan was corrected by."""
    told = layout.plan.get("bias", {})
    return Bias(told.get("memory", 1.0), told.get("time", 1.0), told.get("runs", 0))


def _freed(layout: Layout) -> Iterator[dict[str, Any]]:
    """Changes of the config, the nearest first."""
    same_batch = same_global_batch(layout.choice) | {"micro_batch_size": "auto"}
    yield same_batch
    yield same_batch | dict.fromkeys(MEMORY_KEYS, "auto")


def same_global_batch(choice: Choice) -> dict[str, Any]:
    """The batch of an optimizer step as it was, however it is split."""
    return {"global_batch_size": choice.global_batch_size, "batch_size": None, "gradient_accumulation_steps": None}


def changes(before: Choice, after: Choice) -> dict[str, Any]:
    """Config keys that make the one layout the other, beside an unchanged global batch."""
    return {key: getattr(after, key) for key in LAYOUT_KEYS if getattr(after, key) != getattr(before, key)}
