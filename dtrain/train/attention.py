"""Attention that keeps documents apart, and the choice of a back end by calling the real kernel.

A micro-batch is one flat row of tokens, (1, T), in which documents follow each other. Three ways to keep them apart:

- `varlen`: one FlashAttention call over all documents, torch's own `varlen_attn` (CUDA, torch >= 2.10);
- `sdpa`: torch's scaled_dot_product_attention, document by document (any device);
- transformers' own `flash_attention_2`, `flash_attention_3`, `eager`: they read `cu_seq_lens_*` or `position_ids`.

Shapes: B batch (always 1 here), H query heads, K key/value heads, T tokens, D head dimension.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dtrain.errors import BadInput
from dtrain.train.sequence_parallel import over_ranks

SDPA = "dtrain_by_document"
VARLEN = "dtrain_varlen"
TRANSFORMERS_NAMES = {
    "sdpa": SDPA,
    "varlen": VARLEN,
    "flash_attention_2": "flash_attention_2",
    "flash_attention_3": "flash_attention_3",
    "eager": "eager",
}
"""dtrain's name of a back end → the `attn_implementation` transformers is given."""

BEST_FIRST = ("flash_attention_3", "flash_attention_2", "varlen", "sdpa")


def sdpa_by_document(
    module: torch.nn.Module,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    document_lengths: Sequence[int] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. Returns (1, T, H, D). `document_lengths` add up to T; None is one document.

    Linear in the number of documents where a masked call is quadratic in T. A padded batch (B > 1) needs no mask:
    padding stands on the right, where causal attention of real tokens never looks.
    """
    _refuse_unknown(others)
    lengths = list(document_lengths) if document_lengths else [query_BHTD.shape[2]]
    parts = [
        _causal(q, k, v, dropout, scaling, sliding_window, softcap)
        for q, k, v in zip(
            query_BHTD.split(lengths, dim=2),
            key_BKTD.split(lengths, dim=2),
            value_BKTD.split(lengths, dim=2),
            strict=True,
        )
    ]
    out_BHTD = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return out_BHTD.transpose(1, 2), None


def _causal(
    q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float | None, window: int | None, softcap: float | None
) -> Tensor:
    """Causal attention inside one document."""
    length = q.shape[2]
    narrow = window is not None and window < length
    if softcap is not None:
        return _softcapped(q, k, v, dropout, scale, window if narrow else None, softcap)
    return functional.scaled_dot_product_attention(
        q, k, v,
        attn_mask=_band(length, window, q.device) if narrow else None,
        dropout_p=dropout, is_causal=not narrow, scale=scale, enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip


def _softcapped(
    q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float | None, window: int | None, softcap: float
) -> Tensor:
    """Gemma 2's attention: scores pass through `softcap * tanh(scores / softcap)`, which no fused torch kernel has."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = (q @ k.transpose(2, 3)) * (scale if scale is not None else q.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~_band(q.shape[2], window, q.device), torch.finfo(scores.dtype).min)
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return functional.dropout(weights, dropout) @ v


def _band(length: int, window: int | None, device: torch.device) -> Tensor:
    """(length, length) booleans: may position i look at position j. `window` counts the position itself."""
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return mask if window is None else mask.triu(1 - window)


def varlen_by_document(
    module: torch.nn.Module,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    document_lengths: Sequence[int] | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The same through torch's FlashAttention for packed rows. Caps and dropout go the sdpa way."""
    if cu_seq_lens_q is None or softcap is not None or dropout > 0.0 or query_BHTD.shape[0] != 1:
        return sdpa_by_document(
            module, query_BHTD, key_BKTD, value_BKTD, attention_mask, dropout, scaling, sliding_window, softcap,
            document_lengths, **others,
        )  # fmt: skip
    _refuse_unknown(others)
    return _varlen(query_BHTD, key_BKTD, value_BKTD, cu_seq_lens_q, max_length_q, scaling, sliding_window), None


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: Any, scale: float | None, window: int | None
) -> Tensor:
    """(1, T, H, D) from torch's kernel, which wants (T, heads, D). torch 2.10 had `is_causal`, later ones a window."""
    from torch.nn.attention.varlen import varlen_attn

    takes = inspect.signature(varlen_attn).parameters
    told: dict[str, Any] = (
        {"window_size": (-1 if window is None else window - 1, 0)} if "window_size" in takes else {"is_causal": True}
    )
    if window is not None and "window_size" not in takes:
        raise BadInput(
            "torch's varlen attention has no window before 2.11", key="attention", fix="set `attention: sdpa`"
        )
    groups = q.shape[1] // k.shape[1]
    if "enable_gqa" in takes:
        told["enable_gqa"] = groups > 1
    elif groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if "scale" in takes:
        told["scale"] = scale
    elif scale is not None:  # that kernel divides by sqrt(D) itself
        q = q * (scale * q.shape[-1] ** 0.5)
    q_THD, k_THD, v_THD = (tensor[0].transpose(0, 1) for tensor in (q, k, v))
    out: Any = varlen_attn(q_THD, k_THD, v_THD, starts, starts, longest, longest, **told)
    return out.unsqueeze(0)  # type: ignore[no-any-return]


KNOWN_EXTRAS = {
    "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "use_cache", "is_causal",
    "output_attentions", "output_hidden_states", "return_dict", "cache_position", "position_embeddings",
    "output_router_logits",
}  # fmt: skip
"""What models pass along that does not change the attention of a training pass."""


def _refuse_unknown(others: dict[str, Any]) -> None:
    """An argument we do not know may change the result (attention sinks, position biases): never drop it in silence."""
    unknown = sorted(name for name, value in others.items() if name not in KNOWN_EXTRAS and value is not None)
    if unknown:
        raise BadInput(
            f"this model's attention needs {', '.join(unknown)}, which dtrain's document-by-document attention has not",
            key="attention", fix="set `attention: eager`",
        )  # fmt: skip


def register() -> None:
    """Make both functions known to transformers; no mask is built for them. Rows may lie on several ranks."""
    from transformers import AttentionInterface
    from transformers.integrations.flash_attention import flash_attention_forward

    AttentionInterface.register(SDPA, over_ranks(sdpa_by_document))
    AttentionInterface.register(VARLEN, over_ranks(varlen_by_document))
    for name in ("flash_attention_2", "flash_attention_3"):
        AttentionInterface.register(name, over_ranks(flash_attention_forward))


# --- choosing by a real call -----------------------------------------------------------------------------------------


def choose(wanted: str, device: torch.device, dtype: torch.dtype) -> tuple[str, list[str]]:
    """The back end to use and a line for each better one that was passed over.

    `auto` takes the best whose real kernel gives the right numbers here. A pinned one that does not work is BadInput.
    """
    if wanted not in ("auto", *TRANSFORMERS_NAMES):
        raise BadInput(
            "not supported by launch yet", key="attention", value=wanted, allowed=["auto", *TRANSFORMERS_NAMES]
        )
    if wanted != "auto":
        reason = why_not(wanted, device, dtype)
        if reason:
            raise BadInput(f"cannot be used here: {reason}", key="attention", value=wanted, fix="set `attention: auto`")
        return wanted, []
    passed_over: list[str] = []
    for name in BEST_FIRST:
        reason = why_not(name, device, dtype)
        if reason is None:
            return name, passed_over
        passed_over.append(f"{name}: {reason}")
    raise AssertionError("sdpa works everywhere")


def why_not(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a back end cannot be used on this device, or None when its real kernel gave the right numbers."""
    if name in ("sdpa", "eager"):
        return None
    if device.type != "cuda":
        return "needs a CUDA GPU"
    if dtype not in (torch.float16, torch.bfloat16):
        return "needs bf16 or fp16"
    needs = {
        "flash_attention_2": ("flash_attn", "pip install flash-attn"),
        "flash_attention_3": ("flash_attn_interface", "FlashAttention 3, built for Hopper"),
    }
    if name in needs and importlib.util.find_spec(needs[name][0]) is None:
        return f"needs {needs[name][1]}"
    probes: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]] = {
        "varlen": lambda q, k, v, starts, longest: _varlen(q, k, v, starts, longest, None, None),
        "flash_attention_2": _probe_flash_2,
        "flash_attention_3": _probe_flash_3,
    }
    try:
        return _wrong_numbers(probes[name], device, dtype)
    except Exception as error:  # a broken build can fail in any way; none of them may break a run
        return f"its kernel failed: {type(error).__name__}: {error}"


def _probe_flash_2(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    q, k, v = (tensor[0].transpose(0, 1) for tensor in (q, k, v))
    return flash_attn_varlen_func(q, k, v, starts, starts, longest, longest, causal=True).unsqueeze(0)  # type: ignore[no-any-return]


def _probe_flash_3(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int) -> Tensor:
    from flash_attn_interface import flash_attn_varlen_func

    q, k, v = (tensor[0].transpose(0, 1) for tensor in (q, k, v))
    out = flash_attn_varlen_func(q, k, v, starts, starts, longest, longest, causal=True)
    return (out[0] if isinstance(out, tuple) else out).unsqueeze(0)  # type: ignore[no-any-return]


def _wrong_numbers(
    kernel: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor], device: torch.device, dtype: torch.dtype
) -> str | None:
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
