"""What stands here: host memory, cores, the GPUs that nvidia-smi lists. Without torch."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dtrain.hardware.gpus import Gpu
from dtrain.units import gib

CPU_TFLOPS_PER_CORE = 0.16
"""Best fp32 matmul (1024³, torch 2.13, one thread) on one core of an AVX-512 Xeon server: 159 GFLOP/s."""
CPU_COPY_GB_PER_S = 14.0
"""A torch tensor copy of 256 MiB on that server, read and written bytes: 13.8 GB/s, shared by its ranks."""
GLOO_GB_PER_S = 1.1
"""A 64 MiB gloo all-reduce over loopback between two ranks on that server: 1.09 GB/s one direction per rank."""

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Listed:
    """One GPU as nvidia-smi lists it."""

    index: str
    uuid: str
    name: str
    memory_mib: str


def host_memory_gib() -> float:
    """RAM of this machine, or the container's limit where that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return gib(min([physical, *_container_limits()]))


def _container_limits() -> list[int]:
    texts = [path.read_text().strip() for path in _CGROUP_LIMITS if path.is_file()]
    return [int(text) for text in texts if text.isdigit()]  # "max" is no limit


def cores() -> int:
    """Those this process may use: the affinity mask, and a container's CPU quota where there is one."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = _CGROUP_CPU.read_text().split()
        if quota != "max":
            mine = min(mine, max(1, round(int(quota) / int(period))))
    return mine


def cpu_card(ranks: int) -> Gpu:
    """The pseudo-card `cpu`: one of `ranks` equal shares of this machine."""
    share = CPU_TFLOPS_PER_CORE * max(cores() / ranks, 1.0)
    measured_there = "estimate: measured on one Xeon server, not here"
    return Gpu(
        name="cpu",
        title=f"CPU (1/{ranks} of this machine)",
        memory_gib=host_memory_gib() / ranks,
        tflops={"fp32": share, "bf16": share},
        measured_tflops_bf16=None,
        memory_gb_per_s=CPU_COPY_GB_PER_S / ranks,
        gpu_link_gb_per_s=GLOO_GB_PER_S,
        pcie_gb_per_s=CPU_COPY_GB_PER_S / ranks,
        compute_capability=None,
        sources={
            "memory_gib": "this machine's RAM (or the container's limit) divided by its ranks",
            "tflops": f"{CPU_TFLOPS_PER_CORE} a core, {measured_there}",
            "memory_gb_per_s": measured_there,
            "gpu_link_gb_per_s": f"gloo over loopback, {measured_there}",
            "pcie_gb_per_s": "as memory: offloading moves nothing on a CPU",
        },
    )


def listed_gpus(environment: Mapping[str, str] = os.environ) -> list[Listed]:
    """The GPUs a training process here would see; empty without nvidia-smi. `CUDA_VISIBLE_DEVICES` is honoured."""
    command = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (FileNotFoundError, PermissionError, subprocess.TimeoutExpired):
        return []
    if answer.returncode != 0:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.stdout.splitlines()]
    return _visible([Listed(*row) for row in rows if len(row) == 4], environment.get("CUDA_VISIBLE_DEVICES"))


def _visible(listed: list[Listed], said: str | None) -> list[Listed]:
    """CUDA's rule: the devices named, by index or start of the UUID, up to the first that does not exist."""
    if said is None:
        return listed
    chosen: list[Listed] = []
    for word in said.split(","):
        match = [
            one for one in listed if word.strip() and (one.index == word.strip() or one.uuid.startswith(word.strip()))
        ]
        if not match:
            break
        chosen.append(match[0])
    return chosen
