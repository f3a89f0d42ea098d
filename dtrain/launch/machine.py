"""What this machine has, without importing torch: GPUs by nvidia-smi."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class GpuHere:
    name: str
    memory_gib: float
    driver: str


def gpus(environment: Mapping[str, str] = os.environ) -> list[GpuHere]:
    """The GPUs a process with that environment would see; empty without a driver."""
    try:
        told = subprocess.run(SMI, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = [_gpu(line) for line in told.splitlines() if line.count(",") >= 2]
    return visible(found, environment.get("CUDA_VISIBLE_DEVICES"))


def _gpu(line: str) -> GpuHere:
    name, memory_mib, driver = (part.strip() for part in line.rsplit(",", 2))
    return GpuHere(name, float(memory_mib) / 1024, driver)


def visible(found: list[GpuHere], chosen: str | None) -> list[GpuHere]:
    """What CUDA_VISIBLE_DEVICES leaves of them: indices, or UUIDs, which only say how many."""
    if chosen is None:
        return found
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    if all(name.isdigit() for name in names):
        return [found[int(name)] for name in names if int(name) < len(found)]
    return found[: len(names)]
