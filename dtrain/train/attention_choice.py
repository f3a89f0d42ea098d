"""Which attention back end a run takes: the best whose real kernel gives the right numbers on this device."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from dtrain.config.schema import Config
from dtrain.errors import BadInput
from dtrain.train.attention import TRANSFORMERS_NAMES, UNLIMITED, Sight, sdpa_by_document, varlen
from dtrain.train.attention_flex import flex

BEST_FIRST = ("flash_attention_3", "flash_attention_2", "varlen", "flex", "sdpa")
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""q, k, v as (1, heads, T, D), where documents start, the longest of them → (1, T, heads, D)."""


def sight_of(config: Config) -> Sight:
    """What the config wants tokens to look back at."""
    return Sight(pattern=config.attention_pattern, memory=config.segment_memory)


def able(sight: Sight) -> tuple[str, ...]:
    """Back ends that have what the config asks for, best first."""
    if sight.memory is not None:
        return ("sdpa",)
    return ("flex", "sdpa") if sight.pattern is not None else BEST_FIRST


def choose(wanted: str, device: torch.device, dtype: torch.dtype, sight: Sight = UNLIMITED) -> tuple[str, list[str]]:
    """The back end to use and a line for each better one that was passed over.

    `auto` takes the best whose real kernel gives the right numbers here. A pinned one that does not work is BadInput.
    """
    if wanted != "auto":
        reason = why_not(wanted, device, dtype)
        if reason:
            raise BadInput(f"cannot be used here: {reason}", key="attention", value=wanted, fix="set `attention: auto`")
        return wanted, []
    passed_over: list[str] = []
    for name in able(sight):
        reason = why_not(name, device, dtype)
        if reason is None:
            return name, passed_over
        passed_over.append(f"{name}: {reason}")
    raise AssertionError("sdpa works everywhere")


def why_not(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a back end cannot be used on this device, or None when its real kernel gave the right numbers."""
    assert name in TRANSFORMERS_NAMES
    if name in ("sdpa", "eager"):
        return None
    if device.type != "cuda":
        return "needs a CUDA GPU"
    if name != "flex" and dtype not in (torch.float16, torch.bfloat16):
        return "needs bf16 or fp16"
    needs = {
        "flash_attention_2": ("flash_attn", "pip install --no-build-isolation flash-attn"),
        "flash_attention_3": ("flash_attn_interface", "FlashAttention 3, built for Hopper"),
    }
    if name in needs and importlib.util.find_spec(needs[name][0]) is None:
        return f"needs {needs[name][1]}"
    try:
        return _wrong_numbers(PROBES[name], device, dtype)
    except Exception as error:  # a broken build can fail in any way; none of them may break a run
        told = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if name in needs and isinstance(error, ImportError | OSError):
            return f"is installed and cannot be loaded ({told}); it needs a build for this torch: {needs[name][1]}"
        return f"its kernel failed: {told}"


def _probe_varlen(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int) -> Tensor:
    return varlen(q, k, v, starts, longest, None, None)


def _probe_flex(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int) -> Tensor:
    return flex(q, k, v, tuple(starts.diff().tolist()), None, None, UNLIMITED)


def _probe_flash_2(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    q, k, v = (tensor[0].transpose(0, 1) for tensor in (q, k, v))
    return flash_attn_varlen_func(q, k, v, starts, starts, longest, longest, causal=True).unsqueeze(0)  # type: ignore[no-any-return]


def _probe_flash_3(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int) -> Tensor:
    from flash_attn_interface import flash_attn_varlen_func

    q, k, v = (tensor[0].transpose(0, 1) for tensor in (q, k, v))
    out = flash_attn_varlen_func(q, k, v, starts, starts, longest, longest, causal=True)
    return (out[0] if isinstance(out, tuple) else out).unsqueeze(0)  # type: ignore[no-any-return]


PROBES: dict[str, Kernel] = {
    "varlen": _probe_varlen,
    "flex": _probe_flex,
    "flash_attention_2": _probe_flash_2,
    "flash_attention_3": _probe_flash_3,
}


def _wrong_numbers(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> str | None:
    """Two documents of 17 and 47 tokens, forward and backward, against sdpa document by document."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 4, 64, 64)
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for _ in range(3))
    starts = torch.tensor([0, 17, 64], dtype=torch.int32, device=device)
    out = kernel(q, k, v, starts, 47)
    reference, _ = sdpa_by_document(torch.nn.Module(), q, k, v, document_lengths=(17, 47))
    got = torch.autograd.grad(out.float().sum(), (q, k, v))
    expected = torch.autograd.grad(reference.float().sum(), (q, k, v))
    errors = [
        (a.float() - b.float()).abs().max().item() for a, b in zip((out, *got), (reference, *expected), strict=True)
    ]
    # bf16 keeps 8 bits: sums over 47 values of size one differ by a few hundredths between kernels
    return None if max(errors) < 0.1 else f"its numbers differ from the reference by {max(errors):.3g}"
