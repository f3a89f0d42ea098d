"""The catalogue of GPUs. Each figure has a source; `Gpu` says what the figures mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Gpu:
    """One card. Rates are dense (no sparsity), links are one direction per GPU, memory is what torch reports as total."""

    name: str
    """The catalogue's name: `a100-80gb`, `4090`."""
    title: str
    """As people say it: `NVIDIA A100 80 GB SXM`."""
    memory_gib: float
    tflops: Mapping[str, float | None]
    """Datasheet dense peak by precision: bf16, fp16, tf32, fp32, fp8; None or absent: the card does not have it."""
    measured_tflops_bf16: float | None
    """Best measured matmul (16-bit: fp16 where there is no bf16)."""
    memory_gb_per_s: float
    gpu_link_gb_per_s: float
    """GPU to GPU in one node (NVLink, xGMI); 0: over PCIe."""
    pcie_gb_per_s: float
    compute_capability: tuple[int, int] | None
    """CUDA's; None where it is no NVIDIA card."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Figure → where it comes from."""
    support: str = "full"
    """`full`, `planned` (plan only, launch refuses) or `refused` with the reason in `note`."""
    note: str = ""

    @property
    def has_bf16(self) -> bool:
        return bool(self.tflops.get("bf16"))
