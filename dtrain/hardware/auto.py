"""`--profile auto`: the GPUs on this machine as a profile, or `cpu` where there are none."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import replace

from dtrain.errors import BadInput
from dtrain.hardware.build import CPU_RANKS, Profile, cpu_profile, gpu_profile, refuse_if_too_old
from dtrain.hardware.gpus import BY_REPORTED_NAME, shortest
from dtrain.hardware.this_machine import Listed, host_memory_gib


def here(listed: list[Listed]) -> Profile:
    """The profile of the GPUs on this machine, or `cpu` where there are none."""
    if not listed:
        found = cpu_profile("cpu", CPU_RANKS, said="auto")
        return replace(found, notes=("auto: nvidia-smi shows no GPU here, so this is the cpu profile", *found.notes))
    kinds = Counter(one.name for one in listed)
    if len(kinds) > 1:
        told = ", ".join(f"{count} × {name}" for name, count in kinds.items())
        raise BadInput(
            f"auto: different GPUs in one machine ({told})",
            key="--profile",
            value="auto",
            fix=f"choose equal ones: CUDA_VISIBLE_DEVICES={_most_common(listed, kinds)}",
        )
    gpu = BY_REPORTED_NAME.get(listed[0].name.lower())
    if gpu is None:
        raise _not_in_catalogue(listed)
    refuse_if_too_old(gpu, "auto")
    found = gpu_profile(gpu, len(listed), name=f"{shortest(gpu)}x{len(listed)}", said="auto")
    notes = (f"auto: {len(listed)} × {gpu.title} found by nvidia-smi", *found.notes)
    return replace(found, host_memory_gib=host_memory_gib(), notes=notes)


def _most_common(listed: list[Listed], kinds: Counter[str]) -> str:
    name = kinds.most_common(1)[0][0]
    return ",".join(one.index for one in listed if one.name == name)


def _not_in_catalogue(listed: list[Listed]) -> BadInput:
    one = listed[0]
    near = difflib.get_close_matches(one.name.lower(), BY_REPORTED_NAME, n=1, cutoff=0.0)
    nearest = BY_REPORTED_NAME[near[0]].name if near else "a100-80gb"
    return BadInput(
        f"auto: {one.name} ({one.memory_mib} MiB) is not in the catalogue",
        key="--profile",
        value="auto",
        fix=f"write a YAML with gpu: {one.name}, gpus_per_node: {len(listed)}, memory_gib: …, catalogue: {nearest}, "
        "and pass its path as --profile",
    )
