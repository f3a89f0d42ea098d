"""Memory ran out: recognised wherever it shows, and put into figures that stand beside the plan's."""

from __future__ import annotations

import errno
import re
from typing import Any

import torch

from dtrain.errors import RunFailed
from dtrain.planner.replan import Shortage
from dtrain.train.memory import PeakMemory
from dtrain.units import GIB, memory

_WORDS = re.compile(r"out of memory|can't allocate memory|bad_alloc|ALLOC_FAILED", re.IGNORECASE)
"""Of CUDA and NCCL, of torch's CPU allocator (c10/core/impl/alloc_cpu.cpp), of C++, of cuBLAS and cuDNN."""
_ASKED_CPU = re.compile(r"tried to allocate (\d+) bytes")
_ASKED_CUDA = re.compile(r"Tried to allocate ([\d.]+) ([KMG]iB)")
_HELD_CUDA = re.compile(r"([\d.]+) ([KMG]iB) is allocated by PyTorch")
BEFORE_A_STEP = ("loading", "the rehearsal", "the probe")
_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": GIB}


class OutOfMemory(Exception):
    """Ends a rank; `told` goes into its error file."""

    def __init__(self, error: RunFailed, shortage: Shortage) -> None:
        super().__init__(str(error))
        self.error = error
        self.shortage = shortage

    @property
    def told(self) -> dict[str, Any]:
        return {**self.error.as_json(), "shortage": self.shortage.as_json()}


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None


def out_of_memory(error: BaseException, peak: PeakMemory, place: str, step: int, planned_gib: float) -> OutOfMemory:
    """`planned_gib`: the plan's peak_allocated."""
    asked = _asked_gib(str(error))
    shortage = Shortage(_held_gib(str(error), peak, asked), asked, place, step)
    when = f"before step {step + 1}" if place in BEFORE_A_STEP else f"of step {step + 1}"
    words = (
        f"out of memory in {place} {when}: planned peak {memory(planned_gib)}, measured at least "
        f"{memory(shortage.needed_gib)} ({memory(shortage.had_gib)} held, {memory(shortage.asked_gib)} asked for)"
    )
    return OutOfMemory(RunFailed(words), shortage)


def _held_gib(words: str, peak: PeakMemory, asked_gib: float) -> float:
    found = _HELD_CUDA.search(words)
    return float(found[1]) * _UNITS[found[2]] / GIB if found else peak.when_it_failed_gib(asked_gib)


def _asked_gib(words: str) -> float:
    on_cpu, on_cuda = _ASKED_CPU.search(words), _ASKED_CUDA.search(words)
    if on_cpu:
        return int(on_cpu[1]) / GIB
    return float(on_cuda[1]) * _UNITS[on_cuda[2]] / GIB if on_cuda else 0.0
