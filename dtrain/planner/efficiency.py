"""What a card sustains: matmuls by size, attention by kernel, memory traffic. FLOP/s, bytes/s and seconds.

Start from the best rate anybody measured on the card (`Gpu.measured_tflops_bf16`), and take off, one by one, what
keeps a training step from it. Every constant says what it means. `fitted` constants were fitted over the published
rows of tests/measured that `benchmarks/planner_accuracy.py` lists as its fitting sources, all rows together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from dtrain.hardware.gpus import GPUS, Gpu

# --- matmuls ------------------------------------------------------------------------------------------------------

UNMEASURED_MATMUL_SHARE = 0.80
"""Best measured matmul over the datasheet where nobody measured: H100 0.80, B200 0.78, A100 0.87 (ml-engineering)."""
GEFORCE_MATMUL_SHARE = 1.14
"""The same for GeForce cards: their datasheets state a boost clock that they pass (1.86 GHz for 1.70 on a 3090, 2.7 for
2.52 on a 4090), and their multiprocessors, with a third of a data centre's tensor cores each, lose less to a shape
(fitted), where a data centre's state the highest clock of all, which the power limit cuts."""
SUSTAINED_SHARE: Mapping[int, float] = {9: 0.89, 10: 0.89}
"""By CUDA major version: clocks under the power limit over a whole step against the short burst of a benchmark. Cards
of 700 W and more are power bound in long matmuls (fitted); the older ones hold their clock."""
AMD_SUSTAINED_SHARE = 0.89
"""The same of AMD's Instinct cards, of 750 W and more (taken over)."""
FP32_SHARE = 0.93
"""Of the datasheet's fp32 rate, which is plain arithmetic and no tensor core's (cuBLAS' SGEMM: 18 of 19.5 on A100)."""
USUAL_SHAPE_SHARE = 0.87
"""The shapes and layouts of a block, its transposed backward products too, against a search's best shape (fitted)."""
FP8_SHARE = 0.85
"""Of the ratio of datasheet rates that fp8 keeps: the best measured matmul on H100 is 1,402 of 1,979, in bf16 794 of
989 (0.88; ml-engineering, accelerator benchmarks), and eight bits draw more power over a step (fitted)."""
TILE_ELEMENTS = 128 * 256
"""Outputs of one thread block of a large GEMM (CUTLASS' usual tile, docs/efficient_gemm.md)."""
SPLIT_K = 4096
"""Longer inner dimensions are split over idle multiprocessors, so a last wave costs no more than this long."""
OUTPUT_BYTES = 2.8
"""Memory traffic per output element that no arithmetic hides: a multiprocessor writes its tile before it takes the next
(two bytes in bf16, and the wait for the first inputs; fitted)."""
UNALIGNED_MATMUL = 3.0
"""Time of a matmul whose rows are no multiple of 16 bytes, over that of one beside it: cuBLAS takes other kernels. A
vocabulary of 50,257 and not 50,304 costs GPT-2 a quarter of its speed (nanoGPT). Compiled code pads."""
ALIGNMENT = 8
MULTIPROCESSORS: Mapping[str, int] = {
    "v100": 80, "t4": 40, "a100": 108, "a10g": 80, "a6000": 84, "3090": 82, "4090": 128, "5090": 170, "l4": 58,
    "l40s": 142, "h100": 132, "h100-pcie": 114, "h200": 132, "gh200": 132, "b200": 148, "gb200": 148, "mi300x": 304,
}  # fmt: skip
"""NVIDIA's and AMD's architecture white papers."""
USUAL_MULTIPROCESSORS = 108
A100_FLOPS_PER_MULTIPROCESSOR = 312e12 / 108

# --- memory -------------------------------------------------------------------------------------------------------

MEMORY_SHARE = 0.85
"""Of the datasheet's bandwidth that streaming kernels reach: A100 1.7 of 2.04 TB/s, H100 2.9 of 3.35 (BabelStream)."""

# --- attention ----------------------------------------------------------------------------------------------------

LEGACY_MMA_SHARE: Mapping[int, float] = {9: 0.673, 10: 0.307}
"""Rate of Ampere's `mma.sync` instruction on newer cards, which FlashAttention 2 is written for, over the card's best
measured matmul: Hopper needs its new `wgmma` for the last third (FlashAttention-3, arXiv 2407.08608, section 1; 535 of
794 TFLOP/s is fitted, Blackwell's taken to be the same 535 of 1,745)."""
ATTENTION_SHARE: Mapping[str, float] = {
    "flash_attention_3": 0.50,
    "flash_attention_2": 0.60,
    "sdpa": 0.60,
    "varlen": 0.60,
    "flex": 0.50,
    "triton": 0.33,
    "cudnn": 0.45,
}
"""Forward and backward together, causal half counted, head dimension 128, long windows: of `mma.sync`'s rate (FA3: of
wgmma's). FA2: 190 of 312 on A100 (arXiv 2307.08691, figures 5 to 7); sdpa and varlen run the same kernel; flex: torch's
blog, about 85 % of FA2; FA3: 500 to 550 of 989 (arXiv 2407.08608, figures 5 and 6), less what the power limit takes;
triton: the kernel of FlashAttention's first generation that MPT ships (fitted), and what torch runs on AMD's cards
(AOTriton); cudnn: of Blackwell's own rate, about 1,000 of 2,250."""
CUDNN_MAJOR = 10
"""CUDA major version of the cards where torch's sdpa takes cuDNN's kernels (sdp_utils.cpp,
check_prefer_cudnn_attention; Hopper's too since torch 2.9, which most published runs are older than)."""
SOFTMAX_SHARE = 0.15
"""Of FlashAttention's time on an A100 that goes to exponentials: a multiprocessor computes 16 a clock, beside 1,024
multiply-adds; cards with fewer tensor cores a multiprocessor lose less to them (arXiv 2407.08608, section 3.1)."""
OLD_CARDS_ATTENTION_SHARE = 0.35
"""FlashAttention 2 needs Ampere; V100 and T4 run torch's memory-efficient kernel (assumed)."""
BACKWARD_ATTENTION_FLOPS = 2.5
"""Five matmuls backward to two forward (arXiv 2307.08691, section 4.1)."""
ATTENTION_HALF_WINDOW = 600
"""Window at which the kernel reaches half its rate: the diagonal's masked half blocks and the softmax (fitted)."""
HEAD_DIM_HALF = 32
"""Rate grows with the head dimension as d / (d + this): softmax work is per score, matmul work per score and channel;
FA2 reaches 0.85 of its d = 128 rate at 64 (arXiv 2307.08691, figure 5)."""


@dataclass(frozen=True)
class Rates:
    """Sustained rates of one card in one compute type."""

    matmul: float
    """FLOP/s of an endless matmul."""
    wave_elements: float
    """Output elements that all multiprocessors compute at once."""
    memory: float
    """Bytes/s of streaming kernels."""
    legacy_matmul: float
    """FLOP/s that kernels written for Ampere's instructions could reach."""

    def matmul_seconds(self, rows: float, inner: float, columns: float) -> float:
        """A rows × inner by inner × columns product: work, half a last wave, and each tile's start and end."""
        outputs = rows * columns
        tail = 0.5 * min(self.wave_elements, outputs) * min(inner, SPLIT_K)
        compute = 2 * (outputs * inner + tail) / self.matmul + OUTPUT_BYTES * outputs / self.memory
        return max(compute, 2 * (rows * inner + inner * columns + outputs) / self.memory)


def _is_amd(gpu: Gpu) -> bool:
    return gpu.compute_capability is None and gpu.name != "cpu"


def _is_geforce(gpu: Gpu) -> bool:
    return "GeForce" in (GPUS[gpu.like].title if gpu.like else gpu.title)


def multiprocessors(gpu: Gpu) -> int:
    gpu = GPUS[gpu.like] if gpu.like else gpu
    name = gpu.name.removesuffix("gb").rstrip("0123456789").rstrip("-") if gpu.name.endswith("gb") else gpu.name
    return MULTIPROCESSORS.get(name, USUAL_MULTIPROCESSORS)


def best_tflops(gpu: Gpu, dtype: str) -> float:
    """Best measured matmul in `dtype`; types that nobody measured keep bf16's ratio to the datasheet."""
    if gpu.name == "cpu":  # its figures are measured ones
        return gpu.tflops.get(dtype) or gpu.tflops.get("fp32") or 0.1
    half = gpu.tflops.get("bf16") or gpu.tflops.get("fp16")
    measured = gpu.measured_tflops_bf16
    unmeasured = GEFORCE_MATMUL_SHARE if _is_geforce(gpu) else UNMEASURED_MATMUL_SHARE
    share = measured / half if measured and half else unmeasured
    if dtype in ("bf16", "fp16") and measured:
        return measured
    if dtype == "fp32":
        return FP32_SHARE * (gpu.tflops.get("fp32") or 0.1)
    for name in (dtype, "fp16" if dtype == "bf16" else "bf16", "fp32"):
        if gpu.tflops.get(name):
            return share * (gpu.tflops[name] or 0.0)
    return measured or 0.1


@lru_cache(maxsize=256)
def rates_of(gpu: Gpu, dtype: str) -> Rates:
    """`dtype` is what the matmuls run in: bf16, fp16, tf32, fp32, fp8."""
    major = gpu.compute_capability[0] if gpu.compute_capability else 0
    share = AMD_SUSTAINED_SHARE if _is_amd(gpu) else SUSTAINED_SHARE.get(major, 1.0)
    if dtype != "fp32" or gpu.name == "cpu":
        share *= USUAL_SHAPE_SHARE
    if dtype == "fp8" and gpu.tflops.get("fp8"):
        share *= FP8_SHARE
    return Rates(
        matmul=1e12 * share * best_tflops(gpu, dtype),
        wave_elements=float(TILE_ELEMENTS * multiprocessors(gpu)) if gpu.name != "cpu" else 0.0,
        memory=MEMORY_SHARE * 1e9 * gpu.memory_gb_per_s,
        legacy_matmul=1e12 * _legacy_tflops(gpu, major),
    )


def _legacy_tflops(gpu: Gpu, major: int) -> float:
    """Older cards have no newer instruction: their datasheet's rate; AMD's datasheet is far off."""
    best = best_tflops(gpu, "bf16")
    if major in LEGACY_MMA_SHARE:
        return LEGACY_MMA_SHARE[major] * best
    return (gpu.tflops.get("bf16") or gpu.tflops.get("fp16") or best) if gpu.compute_capability else best


def attention_rate(gpu: Gpu, kernel: str, head_dim: int, context: float) -> float:
    """FLOP/s of a fused attention kernel at a mean causal context (half the window), half the scores counted."""
    major = gpu.compute_capability[0] if gpu.compute_capability else None
    if kernel == "flash_attention_3" and major != 9:  # it runs there only; elsewhere its older brother does
        kernel = "flash_attention_2"
    if kernel == "sdpa":
        kernel = "cudnn" if major == CUDNN_MAJOR else "triton" if _is_amd(gpu) else kernel
    share = ATTENTION_SHARE.get(kernel, ATTENTION_SHARE["sdpa"])
    if major is not None and major < 8:
        share = OLD_CARDS_ATTENTION_SHARE
    peak = 1e12 * (gpu.tflops.get("bf16") or gpu.tflops.get("fp16") or gpu.tflops.get("fp32") or 0.1)
    top = peak if kernel in ("flash_attention_3", "cudnn") else min(rates_of(gpu, "bf16").legacy_matmul, peak)
    if major in (8, 12):
        share /= 1 - SOFTMAX_SHARE * (1 - peak / multiprocessors(gpu) / A100_FLOPS_PER_MULTIPROCESSOR)
    by_dim = head_dim / (head_dim + HEAD_DIM_HALF) * (128 + HEAD_DIM_HALF) / 128
    window = 2 * context
    return share * top * min(by_dim, 1.1) * window / (window + ATTENTION_HALF_WINDOW)
