"""torch's flex_attention over packed rows: a block mask of documents, causality, windows and patterns, so that whole
blocks nobody sees are never computed. Forward and backward need CUDA; without it there is only a slow forward.

Shapes: B batch (1), H query heads, K key/value heads, T tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from dtrain.train.attention import UNLIMITED, Sight, pieces, refuse_unknown, refuse_warm, sdpa_by_document
from dtrain.train.attention_pattern import sees


def flex_by_document(
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
    s_aux: Tensor | None = None,
    asked: Sight | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface; see `sdpa_by_document`, where padded rows, dropout, sinks and segment memory
    go."""
    sight = Sight.of(module, sliding_window, asked or UNLIMITED)
    if query_BHTD.shape[0] != 1 or dropout > 0.0 or s_aux is not None or sight.memory is not None:
        return sdpa_by_document(
            module, query_BHTD, key_BKTD, value_BKTD, attention_mask, dropout, scaling, sliding_window, softcap,
            document_lengths, s_aux, asked, **others,
        )  # fmt: skip
    refuse_unknown(others)
    lengths = tuple(document_lengths) if document_lengths else (query_BHTD.shape[2],)
    refuse_warm(module, lengths)
    return flex(query_BHTD, key_BKTD, value_BKTD, lengths, scaling, softcap, sight), None


def flex(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float | None, softcap: float | None, sight: Sight
) -> Tensor:
    """(1, T, H, D)."""
    out_BHTD = kernel(q.device.type)(
        q, k, v, score_mod=None if softcap is None else capped(softcap),
        block_mask=block_mask(tuple(pieces(lengths, sight.chunk)), sight, q.device),
        scale=scale, enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return out_BHTD.transpose(1, 2)  # type: ignore[no-any-return]


@cache
def kernel(device_type: str) -> Any:
    """Compiled where it becomes a fused kernel; uncompiled it is the plain formula, which tests compare."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention


@cache
def capped(softcap: float) -> Callable[..., Tensor]:
    def score(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return score


@lru_cache(maxsize=4)
def block_mask(lengths: tuple[int, ...], sight: Sight, device: torch.device) -> Any:
    """One for all layers that see alike."""
    from torch.nn.attention.flex_attention import create_block_mask

    total = sum(lengths)
    return create_block_mask(rule(lengths, sight, device), None, None, total, total, device=str(device))


def rule(lengths: Sequence[int], sight: Sight, device: torch.device) -> Callable[..., Tensor]:
    """flex_attention's mask function: same document, not later, and in sight."""
    sizes = torch.tensor(lengths, device=device)
    document_T = torch.repeat_interleave(torch.arange(len(lengths), device=device), sizes)
    place_T = torch.cat([torch.arange(length, device=device) for length in lengths])
    in_pattern = None if sight.pattern is None else sees(sight.pattern, max(lengths), device)

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (document_T[query] == document_T[key]) & (key <= query)
        if sight.window is not None:
            seen = seen & (query - key < sight.window)
        return seen if in_pattern is None else seen & in_pattern(place_T[query], place_T[key])

    return allowed
