"""Batch arithmetic: what was said about batches, and the (micro-batch, accumulation) pairs that obey it.

    global_batch_size = micro_batch_size × gradient_accumulation_steps × data-parallel ranks
    batch_size        = micro_batch_size × gradient_accumulation_steps          (samples per GPU per optimizer step)

A sample is a row, or a packed row when packing. Nothing that was said is ever changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dtrain.config.origins import Loaded
from dtrain.config.schema import Config
from dtrain.errors import BadInput
from dtrain.hardware.profiles import Profile

DEFAULT_GLOBAL_BATCH = 32
"""Samples per optimizer step where the file says nothing: a usual fine-tuning batch, the same on any machine."""
LARGEST_AUTO_MICRO_BATCH = 256
"""Beyond this a bigger micro-batch has never been faster; it bounds the search."""


@dataclass(frozen=True)
class Batches:
    """The pairs the planner may choose from, small micro-batches first."""

    pairs: tuple[tuple[int, int], ...]
    """(micro_batch_size, gradient_accumulation_steps)."""
    data_parallel: int
    said: str
    """One sentence: what the file said, or which default was taken."""
    sequence_parallel: int = 1

    @property
    def is_fixed(self) -> bool:
        return len(self.pairs) == 1

    def global_batch(self, micro: int, accumulation: int) -> int:
        return micro * accumulation * self.data_parallel


def data_parallel_ranks(loaded: Loaded, profile: Profile, sequence_parallel: int) -> int:
    """GPUs that read different samples. BadInput when sequence and tensor parallel do not divide the GPUs."""
    group = sequence_parallel * loaded.config.tensor_parallel_size
    if profile.gpus % group:
        key = "sequence_parallel_size" if sequence_parallel > 1 else "tensor_parallel_size"
        fix = f"choose a divisor of {profile.gpus}, or a profile with a multiple of {group} GPUs"
        message = f"{profile.gpus} GPUs cannot be split into groups of {group}"
        raise _located(loaded, key, message, group, allowed=", ".join(map(str, divisors(profile.gpus))), fix=fix)
    return profile.gpus // group


def batches(loaded: Loaded, profile: Profile, sequence_parallel: int = 0) -> Batches:
    """What may be chosen, with the file's sequence parallel or another. BadInput when the figures contradict each
    other or do not divide."""
    size = sequence_parallel or loaded.config.sequence_parallel_size
    return replace(_batches(loaded, data_parallel_ranks(loaded, profile, size)), sequence_parallel=size)


def _batches(loaded: Loaded, ranks: int) -> Batches:
    config = loaded.config
    if config.gradient_accumulation_steps and config.batch_size:
        raise _located(
            loaded, "batch_size", "give batch_size or gradient_accumulation_steps, not both", config.batch_size
        )
    if config.global_batch_size:
        return _from_global(loaded, ranks)
    if config.batch_size:
        pairs = _split(loaded, config.batch_size, "batch_size", config.batch_size)
        return Batches(pairs, ranks, f"batch_size {config.batch_size} per GPU × {ranks} = {config.batch_size * ranks}")
    if config.gradient_accumulation_steps:
        return _from_accumulation(config, ranks)
    if config.micro_batch_size != "auto":
        said = f"micro_batch_size {config.micro_batch_size} × {ranks} ranks, no accumulation asked for"
        return Batches(((config.micro_batch_size, 1),), ranks, said)
    return _by_default(ranks)


def _by_default(ranks: int) -> Batches:
    per_rank = -(-DEFAULT_GLOBAL_BATCH // ranks)
    said = f"no batch size was given: {per_rank * ranks} samples per optimizer step (set global_batch_size)"
    return Batches(_pairs(per_rank), ranks, said)


def _from_accumulation(config: Config, ranks: int) -> Batches:
    steps = config.gradient_accumulation_steps or 1
    if config.micro_batch_size != "auto":
        said = f"{config.micro_batch_size} × {steps} accumulation × {ranks} ranks"
        return Batches(((config.micro_batch_size, steps),), ranks, said)
    sizes = [
        size
        for size in divisors(DEFAULT_GLOBAL_BATCH)
        if size * steps * ranks <= max(DEFAULT_GLOBAL_BATCH, ranks * steps)
    ]
    said = f"gradient_accumulation_steps {steps} was given, the micro-batch was left to the planner"
    return Batches(tuple((size, steps) for size in sizes), ranks, said)


def _from_global(loaded: Loaded, ranks: int) -> Batches:
    config, wanted = loaded.config, loaded.config.global_batch_size or 1
    if config.batch_size and config.batch_size * ranks != wanted:
        made = config.batch_size * ranks
        message = f"batch_size {config.batch_size} × {ranks} ranks is {made}, not global_batch_size {wanted}"
        raise _located(loaded, "batch_size", message, config.batch_size, fix="leave batch_size out")
    if wanted % ranks:
        near = nearest_multiples(wanted, ranks)
        raise _located(
            loaded, "global_batch_size", f"{wanted} cannot be split over {ranks} data-parallel ranks", wanted,
            allowed=f"a multiple of {ranks}", fix=f"the nearest that work: {' or '.join(map(str, near))}",
        )  # fmt: skip
    if config.gradient_accumulation_steps:
        return _global_and_accumulation(loaded, ranks, wanted)
    pairs = _split(loaded, wanted // ranks, "global_batch_size", wanted)
    return Batches(pairs, ranks, f"global_batch_size {wanted} over {ranks} ranks")


def _global_and_accumulation(loaded: Loaded, ranks: int, wanted: int) -> Batches:
    config = loaded.config
    steps = config.gradient_accumulation_steps or 1
    micro, rest = divmod(wanted, ranks * steps)
    if rest or (config.micro_batch_size not in ("auto", micro)):
        message = f"accumulation {steps} over {ranks} ranks cannot make global_batch_size {wanted}"
        if not rest:
            message += f" with micro_batch_size {config.micro_batch_size}"
        raise _located(
            loaded,
            "gradient_accumulation_steps",
            message,
            steps,
            fix="leave gradient_accumulation_steps out: it follows",
        )
    return Batches(((micro, steps),), ranks, f"global_batch_size {wanted} = {micro} × {steps} × {ranks}")


def _split(loaded: Loaded, per_rank: int, key: str, value: int) -> tuple[tuple[int, int], ...]:
    micro = loaded.config.micro_batch_size
    if micro == "auto":
        return _pairs(per_rank)
    if per_rank % micro:
        near = ", ".join(map(str, divisors(per_rank)))
        multiples = " or ".join(map(str, nearest_multiples(value, value // per_rank * micro)))
        message = f"{key} {value} is {per_rank} per GPU, which is no multiple of micro_batch_size {micro}"
        raise _located(
            loaded, "micro_batch_size", message, micro,
            allowed=near, fix=f"micro_batch_size: one of {near}; or {key}: {multiples}",
        )  # fmt: skip
    return ((micro, per_rank // micro),)


def _pairs(per_rank: int) -> tuple[tuple[int, int], ...]:
    return tuple((size, per_rank // size) for size in divisors(per_rank) if size <= LARGEST_AUTO_MICRO_BATCH)


def divisors(number: int) -> list[int]:
    small = [one for one in range(1, int(number**0.5) + 1) if number % one == 0]
    return sorted({*small, *(number // one for one in small)})


def nearest_multiples(value: int, of: int) -> Sequence[int]:
    below, above = value // of * of, -(-value // of) * of
    return [one for one in dict.fromkeys((below, above)) if one > 0]


def _located(
    loaded: Loaded, key: str, message: str, value: object, allowed: str | None = None, fix: str | None = None
) -> BadInput:
    origin = loaded.origin(key)
    return BadInput(message, file=origin.file, line=origin.line, key=key, value=value, allowed=allowed, fix=fix)
