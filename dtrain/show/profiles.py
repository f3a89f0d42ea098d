"""Machines as a table, and one of them in full with the source of each figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from dtrain.hardware.gpus import Gpu
from dtrain.hardware.prices import Offer, offers
from dtrain.hardware.profiles import Profile
from dtrain.units import dollars

HEADINGS = ("PROFILE", "CARD", "MEMORY GiB", "LINK GB/s", "16-BIT TFLOP/s", "BEST PRICE")
GRAMMAR_LINES = (
    "Any number of cards and nodes: gpu[-NNgb]xGPUS_PER_NODE[xNODES], as a100-40gbx4 or h100x8x4; cpux4 is four ranks.",
    "auto looks at this machine; a path is your own YAML. One in full, with sources: dtrain profiles a100x8",
)


def print_profiles(profiles: Sequence[Profile], console: Console) -> None:
    rows = [_row(profile) for profile in profiles]
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    console.print(Text(_aligned(HEADINGS, widths), style="bold"), soft_wrap=True)
    for row in rows:
        console.print(Text(_aligned(row, widths)), soft_wrap=True)
    console.print()
    for line in GRAMMAR_LINES:
        console.print(Text(line), soft_wrap=True)


def _row(profile: Profile) -> tuple[str, ...]:
    gpu = profile.gpu
    return (
        profile.name,
        gpu.title + (" (planned for only)" if gpu.support == "planned" else ""),
        f"{gpu.memory_gib:.2f}",
        f"{gpu.gpu_link_gb_per_s:g}" if gpu.gpu_link_gb_per_s else "PCIe",
        _rate(gpu),
        _best_price(offers(profile)),
    )


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _rate(gpu: Gpu) -> str:
    bf16, fp16 = gpu.tflops.get("bf16"), gpu.tflops.get("fp16")
    return f"{bf16:g}" if bf16 else f"{fp16:g} (fp16)" if fp16 else "-"


def _best_price(found: Sequence[Offer]) -> str:
    if not found:
        return "-"
    best = found[0]
    kind = "" if best.kind == "on-demand" else f", {best.kind}"
    return f"{dollars(best.usd_per_hour)}/h {best.provider}{kind}"


def print_profile(profile: Profile, console: Console) -> None:
    """Every figure with its source, then the notes and the prices."""
    console.print(
        Text(f"{profile.name}: {profile.nodes} × {profile.gpus_per_node} × {profile.gpu.title}", style="bold")
    )
    rows = _figures(profile)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        console.print(Text(_aligned(row, widths)), soft_wrap=True)
    for note in profile.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    for offer in offers(profile):
        console.print(Text(_offer_line(offer)), soft_wrap=True)


def _figures(profile: Profile) -> list[tuple[str, str, str]]:
    gpu, sources = profile.gpu, profile.gpu.sources
    rates = ", ".join(f"{name} {rate:g}" for name, rate in gpu.tflops.items() if rate)
    measured = f"{gpu.measured_tflops_bf16:g} TFLOP/s" if gpu.measured_tflops_bf16 else "not known"
    link = f"{gpu.gpu_link_gb_per_s:g} GB/s one way per GPU" if gpu.gpu_link_gb_per_s else "over PCIe"
    around = profile.surroundings_source
    return [
        ("memory (as torch reports it)", f"{gpu.memory_gib:.2f} GiB", sources.get("memory_gib", "")),
        ("dense datasheet rates", f"{rates} TFLOP/s", sources.get("tflops", "")),
        ("best measured 16-bit matmul", measured, sources.get("measured_tflops_bf16", "")),
        ("memory bandwidth", f"{gpu.memory_gb_per_s:g} GB/s", sources.get("memory_gb_per_s", "")),
        ("GPU to GPU", link, sources.get("gpu_link_gb_per_s", "")),
        ("host to GPU", f"{gpu.pcie_gb_per_s:g} GB/s", sources.get("pcie_gb_per_s", "")),
        ("host memory per node", f"{profile.host_memory_gib:.0f} GiB", around),
        ("network per node", f"{profile.network_gbit_per_s:g} Gbit/s", around),
    ]


def _offer_line(offer: Offer) -> str:
    price = f"{dollars(offer.usd_per_hour)}/h".rjust(10)
    return f"{price}  {offer.provider} {offer.machine} ({offer.kind}, {offer.priced_on}: {offer.source})"


def profile_json(profile: Profile) -> dict[str, Any]:
    gpu = profile.gpu
    return {
        "name": profile.name,
        "gpu": gpu.name,
        "title": gpu.title,
        "gpus": profile.gpus,
        "gpus_per_node": profile.gpus_per_node,
        "nodes": profile.nodes,
        "memory_gib": gpu.memory_gib,
        "tflops": dict(gpu.tflops),
        "measured_tflops_bf16": gpu.measured_tflops_bf16,
        "memory_gb_per_s": gpu.memory_gb_per_s,
        "gpu_link_gb_per_s": gpu.gpu_link_gb_per_s,
        "pcie_gb_per_s": gpu.pcie_gb_per_s,
        "network_gbit_per_s": profile.network_gbit_per_s,
        "host_memory_gib": profile.host_memory_gib,
        "compute_capability": gpu.compute_capability,
        "support": gpu.support,
        "usd_per_hour": profile.usd_per_hour,
        "sources": {**gpu.sources, "host_memory_gib": profile.surroundings_source},
        "notes": list(profile.notes),
        "offers": [offer.__dict__ for offer in offers(profile)],
    }
