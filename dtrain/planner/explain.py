"""A sentence for each choice, and for the best rejected neighbour in each direction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dtrain.planner.choose import DIMENSIONS, HEADROOM, Candidate, Search, same_speed
from dtrain.planner.memory import HOST_HEADROOM
from dtrain.planner.pins import Space
from dtrain.planner.throughput import sequence_parallel_seconds, tensor_parallel_seconds
from dtrain.units import memory

NAMES = {
    "zero_stage": "ZeRO stage",
    "offload_optimizer": "offload_optimizer",
    "offload_params": "offload_params",
    "gradient_checkpointing": "gradient_checkpointing",
    "micro_batch_size": "micro_batch_size",
    "cross_entropy": "cross_entropy",
    "attention": "attention",
    "sequence_parallel_size": "sequence_parallel_size",
}


@dataclass(frozen=True)
class Neighbour:
    """A layout that was not taken, one dimension away from the one that was."""

    key: str
    value: str | int
    faster: float
    """Samples per second over the chosen layout's, less one."""
    peak_gib: float
    verdict: str
    """Why it was not taken, in words."""

    def as_json(self) -> dict[str, Any]:
        figures = {"faster": float(f"{self.faster:.6g}"), "peak_gib": float(f"{self.peak_gib:.9g}")}
        return {"key": self.key, "value": self.value, **figures, "verdict": self.verdict}


def neighbours(search: Search, space: Space) -> tuple[Neighbour, ...]:
    """The best rejected layouts, at most two in each direction that the file leaves open."""
    return tuple(
        Neighbour(
            name, getattr(rival.choice, name), _speed(search.best, rival), rival.memory.peak,
            _compare(search.best, rival, name),
        )
        for name in DIMENSIONS
        if name not in space.said
        for rival in list(_best_by_value(search, name))[:2]
    )  # fmt: skip


def reasons(search: Search, space: Space) -> tuple[str, ...]:
    """What was chosen and why, most important first."""
    best = search.best
    return (
        _fit(best),
        f"global batch {best.choice.global_batch_size}: {search.batch}",
        *(_dimension(search, space, name) for name in DIMENSIONS if _worth_saying(best, space, name)),
        *_tensor_parallel(best),
        _precision(best),
    )


def _worth_saying(best: Candidate, space: Space, name: str) -> bool:
    """Not that nothing is offloaded or shared out where nobody asked."""
    silent = {"offload_params": "none", "sequence_parallel_size": 1}
    return name not in silent or name in space.said or getattr(best.choice, name) != silent[name]


def _fit(best: Candidate) -> str:
    peak, capacity, profile = best.memory.peak, best.capacity_gib, best.setup.profile
    place = f"peak {memory(peak)} in {best.memory.peak_phase}"
    host = f"{memory(best.memory.host_memory_gib)} of {memory(profile.host_memory_gib)} of host memory per node"
    if best.within_headroom:
        return (
            f"{place} leaves {memory(capacity - peak)} of {memory(capacity)} free ({HEADROOM:.0%} is kept as reserve)"
        )
    if peak > capacity:
        return f"{place} is {memory(peak - capacity)} more than the {memory(capacity)} there are"
    if not best.host_fits:
        return f"{host} are needed"
    if not best.host_within_headroom:
        return f"{host} are needed, and {HOST_HEADROOM:.0%} should stay free"
    return f"{place} fits {memory(capacity)} but eats into the reserve of {memory(best.headroom_gib)}"


def _dimension(search: Search, space: Space, name: str) -> str:
    best = search.best
    value = getattr(best.choice, name)
    label = f"{NAMES[name]} {value}"
    if name in space.said:
        return f"{label}: as the file says{_remark(best, name)}"
    said = "; ".join(_compare(best, rival, name) for rival in list(_best_by_value(search, name))[:2])
    return f"{label}: {said or 'the only way here'}{_remark(best, name)}"


def _best_by_value(search: Search, name: str) -> Iterable[Candidate]:
    """For each other value of a dimension its best layout, all else as chosen; else with all else free."""
    best = search.best
    others: dict[object, list[Candidate]] = {}
    for one in search.candidates:
        value = getattr(one.choice, name)
        if value != getattr(best.choice, name) and _same_but(best, one, name):
            others.setdefault(value, []).append(one)
    found = [min(group, key=lambda one: one.seconds_per_sample) for group in others.values()]
    if name == "micro_batch_size":  # the next larger and the next smaller; what is far away says nothing
        mine = best.choice.micro_batch_size
        larger = [one for one in found if one.choice.micro_batch_size > mine]
        smaller = [one for one in found if one.choice.micro_batch_size < mine]
        return [*sorted(larger, key=_micro)[:1], *sorted(smaller, key=_micro)[-1:]]
    return sorted(found, key=lambda one: (one.seconds_per_sample, one.complexity))


def _micro(one: Candidate) -> int:
    return one.choice.micro_batch_size


def _same_but(best: Candidate, other: Candidate, name: str) -> bool:
    accumulates = name in ("micro_batch_size", "sequence_parallel_size")
    free = {name, "gradient_accumulation_steps"} if accumulates else {name}
    fields = (*DIMENSIONS, "gradient_accumulation_steps")
    return all(getattr(best.choice, one) == getattr(other.choice, one) for one in fields if one not in free)


def _compare(best: Candidate, rival: Candidate, name: str) -> str:
    """One clause: `2 would be 9 % faster but is 3.1 GiB over`."""
    speed = _speed(best, rival)
    words = _pace(speed)
    value = getattr(rival.choice, name)
    if rival.within_headroom:
        close = ", too close to tell" if 0.005 < speed <= same_speed(best.setup.profile) else ""
        return f"{value} would be {words} with {memory(rival.memory.peak)}{close}"
    if rival.over_gib <= 0:
        return f"{value} would be {words} but host memory is too small for it"
    return f"{value} would be {words} but is {memory(rival.over_gib)} over what may be used"


def _speed(best: Candidate, rival: Candidate) -> float:
    return best.seconds_per_sample / rival.seconds_per_sample - 1


def _pace(speed: float) -> str:
    """Samples per second, as a share more or less than the layout that was taken."""
    if abs(speed) < 0.005:
        return "as fast"
    return f"{speed:.0%} faster" if speed > 0 else f"{-speed:.0%} slower"


def _remark(best: Candidate, name: str) -> str:
    """What a choice brings with it."""
    setup, size = best.setup, best.choice.sequence_parallel_size
    if name == "attention" and best.choice.attention.startswith("flash"):  # a package, which a machine may not have
        return "; the machine checks the real kernel before step 1"
    if name == "sequence_parallel_size" and size > 1:
        share = setup.accumulation * sequence_parallel_seconds(setup) / best.time.step_seconds
        each = -(-setup.sequence_len // size)
        return f"; {each:,} tokens of a row on each rank, exchanging tokens for heads takes {share:.0%} of a step"
    return ""


def _tensor_parallel(best: Candidate) -> Iterable[str]:
    setup, size = best.setup, best.setup.tensor_parallel_size
    if size > 1:
        share = setup.accumulation * tensor_parallel_seconds(setup) / best.time.step_seconds
        yield (
            f"tensor_parallel_size {size}: {setup.tensor_share:.0%} of the parameters on each rank, adding up the "
            f"layers' parts takes {share:.0%} of a step"
        )


def _precision(best: Candidate) -> str:
    gpu, precision = best.setup.profile.gpu, best.choice.precision
    master = best.setup.dtypes.master
    masters = f", {master} masters by DeepSpeed" if master else ""
    if master == "bf16":
        masters += ": steps smaller than 1/256 of a weight are lost"
    return f"precision {precision} on {gpu.title}{masters}"
