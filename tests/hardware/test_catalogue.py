"""The cards: the figures others rely on, and that each has its source and its usual machine."""

from __future__ import annotations

import pytest

from dtrain.hardware.gpus import BY_NAME, BY_REPORTED_NAME, GPUS, Gpu
from dtrain.hardware.machines import machines, usual_surroundings
from dtrain.hardware.prices import prices

TORCH_REPORTS = {
    "t4": 14.56,
    "l4": 22.03,
    "a10g": 22.06,
    "3090": 23.56,
    "4090": 23.52,
    "5090": 31.36,
    "a100-40gb": 39.49,
    "l40s": 44.4,
    "a6000": 47.4,
    "a100-80gb": 79.15,
    "h100": 79.18,
    "h200": 139.8,
    "b200": 178.36,
    "gb200": 184.31,
    "mi300x": 191.98,
}
"""GiB; what an out-of-memory error compares with (public logs)."""


@pytest.mark.parametrize(("name", "gib"), TORCH_REPORTS.items())
def test_memory_is_what_torch_reports(name: str, gib: float) -> None:
    assert GPUS[name].memory_gib == gib


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_every_figure_has_a_source_and_is_sane(gpu: Gpu) -> None:
    needed = {"memory_gib", "tflops", "memory_gb_per_s", "gpu_link_gb_per_s", "pcie_gb_per_s"}
    if gpu.measured_tflops_bf16 is not None:
        needed.add("measured_tflops_bf16")
    assert needed <= set(gpu.sources)
    assert gpu.nominal_gb is not None
    assert 0.85 * gpu.nominal_gb < gpu.memory_gib < 1.001 * gpu.nominal_gb
    rates = [rate for rate in (gpu.tflops.get(name) for name in ("fp32", "tf32", "fp16", "fp8")) if rate]
    assert rates == sorted(rates), "a narrower type is never slower"
    assert gpu.measured_tflops_bf16 is None or gpu.measured_tflops_bf16 < (gpu.tflops["bf16"] or 0)
    assert usual_surroundings(gpu.name, 1).host_memory_gib > 0


def test_old_cards_have_no_bf16() -> None:
    without = {name for name, gpu in GPUS.items() if not gpu.has_bf16}
    assert without == {"v100-16gb", "v100-32gb", "t4", "p100"}


def test_no_name_means_two_cards() -> None:
    names = [name for gpu in GPUS.values() for name in (gpu.name, *gpu.aliases)]
    assert len(names) == len(set(names))
    assert BY_NAME["a100"] is GPUS["a100-80gb"]
    assert BY_NAME["h100-80gb"] is GPUS["h100"]
    assert BY_REPORTED_NAME["nvidia a100-sxm4-40gb"] is GPUS["a100-40gb"]


def test_tables_name_only_cards_of_the_catalogue() -> None:
    assert {one.gpu for one in machines()} == set(GPUS)
    assert {one.gpu for one in prices()} <= set(GPUS)


def test_a_part_of_a_machine_has_a_part_of_its_memory() -> None:
    whole, half = usual_surroundings("h100", 8), usual_surroundings("h100", 4)
    assert (whole.host_memory_gib, whole.network_gbit_per_s) == (2048, 3200)
    assert (half.host_memory_gib, half.network_gbit_per_s) == (1024, 1600)
    assert "4/8 of p5.48xlarge" in half.source
    assert usual_surroundings("4090", 4).host_memory_gib == 4 * 64
