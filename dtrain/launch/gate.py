"""Is this machine fit to train? Tried before a run starts on it, and before it is paid for longer than a minute.

`python -m dtrain.launch.gate` reads `Wanted` as JSON and prints its findings as one line of JSON. A machine may list
its GPUs and still fail the first CUDA call, so torch really works on each of them; without GPUs the CPU's part runs.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dtrain.hardware.this_machine import listed_gpus
from dtrain.launch.here import SAME_CARD
from dtrain.units import gib

SLOW_COPY_GB_PER_S = 2.0
"""Host to device, pinned. PCIe 3.0 with 16 lanes copies at about 12; less than this is a link with one lane or two."""
COPY_BYTES = 256 << 20
MATMUL = 1024
CHECKPOINTS_KEPT = 3
"""Two that are kept and the one being written (save_total_limit's default is 2)."""
BYTES_PER_TRAINED_PARAMETER = 12
"""In a checkpoint: fp32 master weights and AdamW's two moments."""
BYTES_PER_PARAMETER = 4
"""In the exported model, at most."""


@dataclass(frozen=True)
class Wanted:
    """What the plan takes for granted."""

    device: str
    gpus: int
    memory_gib: float | None
    """Of each card, as torch reports it."""
    disk_gib: float
    folder: str
    """Where the run's files go."""

    @classmethod
    def of(cls, plan: Mapping[str, Any], device: str, ranks: int, folder: str) -> Wanted:
        model = plan.get("model", {})
        trained, all_of_them = model.get("trainable_parameters", 0), model.get("parameters", 0)
        disk = gib(CHECKPOINTS_KEPT * BYTES_PER_TRAINED_PARAMETER * trained + BYTES_PER_PARAMETER * all_of_them)
        cuda = device == "cuda"
        memory = plan.get("profile", {}).get("capacity_gib") if cuda else None
        return cls(device, ranks if cuda else 0, memory, disk, folder)


@dataclass(frozen=True)
class Finding:
    part: str
    ok: bool
    found: str
    """A figure, or what is wrong."""


def examine(wanted: Wanted) -> Iterator[Finding]:
    """Every part in turn, cheapest first; after a part that fails the ones that build on it are left out."""
    yield _disk(wanted)
    listed = _listed(wanted)
    if wanted.gpus and listed:
        yield listed[0]
    if all(finding.ok for finding in listed):
        yield from _tried(wanted)


def _disk(wanted: Wanted) -> Finding:
    folder = Path(wanted.folder)
    while not folder.is_dir():
        folder = folder.parent
    free = gib(shutil.disk_usage(folder).free)
    return Finding("disk", free >= wanted.disk_gib, f"{free:.1f} GiB free, {wanted.disk_gib:.1f} for checkpoints")


def _listed(wanted: Wanted) -> list[Finding]:
    if not wanted.gpus:
        return []
    found = len(listed_gpus())
    return [Finding("GPUs listed", found >= wanted.gpus, f"nvidia-smi lists {found}, the plan has {wanted.gpus}")]


def _tried(wanted: Wanted) -> Iterator[Finding]:
    """torch at work. Whatever it raises is what is wrong with the machine."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", False, f"does not load: {error}")
        return
    yield Finding("torch", True, torch.__version__)
    devices = [torch.device("cuda", number) for number in range(wanted.gpus)] or [torch.device("cpu")]
    for device in devices:
        try:
            yield from _device(torch, device, wanted)
        except Exception as error:
            yield Finding(str(device), False, f"{type(error).__name__}: {str(error).splitlines()[0]}")


def _device(torch: Any, device: Any, wanted: Wanted) -> Iterator[Finding]:
    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), gib(torch.cuda.get_device_properties(device).total_memory)
        enough = wanted.memory_gib is None or memory >= SAME_CARD * wanted.memory_gib
        planned = f", the plan has {wanted.memory_gib:.0f}" if wanted.memory_gib else ""
        yield Finding(f"{device} memory", enough, f"{name}, {memory:.0f} GiB{planned}")
    ones = torch.ones(MATMUL, MATMUL, device=device)
    right = bool(((ones @ ones) == MATMUL).all().item())
    yield Finding(f"{device} matmul", right, "right" if right else "gives wrong numbers")
    if device.type == "cuda":
        speed = _copy_gb_per_s(torch, device)
        yield Finding(f"{device} copy", speed >= SLOW_COPY_GB_PER_S, f"{speed:.1f} GB/s from the host")


def _copy_gb_per_s(torch: Any, device: Any) -> float:
    """The best of three: the first one also sets the copy up."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    seconds = []
    for _ in range(3):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        source.to(device, non_blocking=True)
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return float(COPY_BYTES / min(seconds) / 1e9)


def refusals(findings: list[Mapping[str, Any]]) -> list[str]:
    """One line for each part that failed; empty means fit."""
    return [f"{one['part']}: {one['found']}" for one in findings if not one["ok"]]


def main() -> int:
    wanted = Wanted(**json.load(sys.stdin))
    print("\n" + json.dumps({"findings": [asdict(finding) for finding in examine(wanted)]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
