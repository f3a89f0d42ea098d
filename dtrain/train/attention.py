"""Attention that keeps documents apart, whatever kernel computes it.

A micro-batch is one flat row of tokens, (1, T), in which documents follow each other. Ways to keep them apart:

- `varlen`: one FlashAttention call over all documents, torch's own `varlen_attn` (CUDA, torch >= 2.10);
- `flex`: torch's flex_attention with a block mask of documents, windows and patterns (CUDA);
- `sdpa`: torch's scaled_dot_product_attention, document by document (any device);
- transformers' own `flash_attention_2`, `flash_attention_3`, `eager`: they read `cu_seq_lens_*` or `position_ids`.

Models that look back over a window, or over chunks, say so to their attention or only to their masks, which are not
built here: `Sight` finds both. Shapes: B batch (1 where flat), H query heads, K key/value heads, T tokens, D head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dtrain.config.schema import AttentionPattern
from dtrain.errors import BadInput
from dtrain.train.attention_pattern import dense_mask
from dtrain.train.sequence_parallel import over_ranks

SDPA = "dtrain_by_document"
VARLEN = "dtrain_varlen"
FLEX = "dtrain_flex"
TRANSFORMERS_NAMES = {
    "sdpa": SDPA,
    "varlen": VARLEN,
    "flex": FLEX,
    "flash_attention_2": "flash_attention_2",
    "flash_attention_3": "flash_attention_3",
    "eager": "eager",
}
"""dtrain's name of a back end → the `attn_implementation` transformers is given."""


@dataclass(frozen=True)
class Sight:
    """What a token may look back at, besides the ends of its document. At most one of these is set."""

    window: int | None = None
    """Tokens, its own counted."""
    chunk: int | None = None
    """Documents are cut into chunks of so many tokens, which do not see each other (Llama 4)."""
    pattern: AttentionPattern | None = None
    memory: int | None = None
    """Segments of so many tokens see themselves and, without gradient, the segment before (Transformer-XL)."""

    @classmethod
    def of(cls, module: Any, window: int | None, asked: Sight) -> Sight:
        """Of one layer. `asked` is the config's own; else the model's, which some models tell only to their masks."""
        if asked != UNLIMITED:
            return asked
        config = getattr(module, "config", None)
        kinds, index = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
        kind = kinds[index] if kinds and index is not None else None
        if kind == "chunked_attention":
            return cls(chunk=config.attention_chunk_size)  # type: ignore[union-attr]
        if window is None and kind in (None, "sliding_attention"):
            window = getattr(config, "sliding_window", None)
        return cls(window=window)

    def mask(self, length: int, device: torch.device) -> Tensor | None:
        """(length, length) booleans for one document, or None where plain causal attention is meant."""
        if self.pattern is not None:
            return dense_mask(self.pattern, length, device)
        narrow = self.window is not None and self.window < length
        return _band(length, self.window, device) if narrow else None


UNLIMITED = Sight()


def pieces(lengths: Sequence[int], chunk: int | None) -> list[int]:
    """Lengths of what does not see each other: documents, or their chunks."""
    if chunk is None:
        return list(lengths)
    return [min(chunk, length - start) for length in lengths for start in range(0, length, chunk)]


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
    s_aux: Tensor | None = None,
    asked: Sight | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. Returns (1, T, H, D). `document_lengths` add up to T; None is one document.
    `s_aux`: a sink for each head (gpt-oss).

    Linear in the number of documents where a masked call is quadratic in T. A padded batch (B > 1) needs no mask:
    padding stands on the right, where causal attention of real tokens never looks.
    """
    refuse_unknown(others)
    lengths = list(document_lengths) if document_lengths else [query_BHTD.shape[2]]
    refuse_warm(module, lengths)
    sight = Sight.of(module, sliding_window, asked or UNLIMITED)
    call = partial(_causal, dropout=dropout, scale=scaling, softcap=softcap, sinks=s_aux)
    parts: list[Tensor] = []
    cut = pieces(lengths, sight.chunk)
    for q, k, v in zip(*(one.split(cut, dim=2) for one in (query_BHTD, key_BKTD, value_BKTD)), strict=True):
        if sight.memory is not None and sight.memory < q.shape[2]:
            parts += _by_segment(call, q, k, v, sight.memory)
        else:
            parts.append(call(q, k, v, sight.mask(q.shape[2], q.device)))
    out_BHTD = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return out_BHTD.transpose(1, 2), None


def _by_segment(call: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, memory: int) -> list[Tensor]:
    """One document, segment by segment: the one before it is seen, and no gradient goes there (arXiv 1901.02860)."""
    queries, keys, values = (one.split(memory, dim=2) for one in (q, k, v))
    parts = [call(queries[0], keys[0], values[0], None)]
    for before, now in pairwise(range(len(queries))):
        key, value = (torch.cat([one[before].detach(), one[now]], dim=2) for one in (keys, values))
        parts.append(call(queries[now], key, value, _after_memory(memory, queries[now].shape[2], q.device)))
    return parts


@lru_cache(maxsize=8)
def _after_memory(memory: int, length: int, device: torch.device) -> Tensor:
    """(length, memory + length) booleans: all of the memory, and the segment up to the token itself."""
    return torch.ones(length, memory + length, dtype=torch.bool, device=device).tril(memory)


def _causal(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, dropout: float, scale: float | None,
    softcap: float | None, sinks: Tensor | None,
) -> Tensor:  # fmt: skip
    """Causal attention inside one document."""
    if softcap is not None or sinks is not None:
        seen = mask if mask is not None else _band(q.shape[2], None, q.device)
        return _by_scores(q, k, v, seen, dropout, scale, softcap, sinks)
    return functional.scaled_dot_product_attention(
        q, k, v,
        attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip


def _by_scores(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float, scale: float | None, softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:  # fmt: skip
    """What no fused torch kernel has: Gemma 2's cap, `softcap * tanh(scores / softcap)`; gpt-oss' sinks, one more score
    a head that takes its share of the softmax and gives nothing."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = (q @ k.transpose(2, 3)) * (scale if scale is not None else q.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks_H is not None:
        sink = sinks_H.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return functional.dropout(weights[..., : k.shape[2]], dropout) @ v


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
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The same through torch's FlashAttention for packed rows. What that has not goes the sdpa way."""
    sight = Sight.of(module, sliding_window, UNLIMITED)
    plain = softcap is None and s_aux is None and dropout == 0.0 and sight.chunk is None
    if cu_seq_lens_q is None or not plain or query_BHTD.shape[0] != 1:
        return sdpa_by_document(
            module, query_BHTD, key_BKTD, value_BKTD, attention_mask, dropout, scaling, sliding_window, softcap,
            document_lengths, s_aux, **others,
        )  # fmt: skip
    refuse_unknown(others)
    refuse_warm(module, document_lengths or ())
    return varlen(query_BHTD, key_BKTD, value_BKTD, cu_seq_lens_q, max_length_q, scaling, sight.window), None


def varlen(
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


def refuse_unknown(others: dict[str, Any]) -> None:
    """An argument we do not know may change the result (attention sinks, position biases): never drop it in silence."""
    unknown = sorted(name for name, value in others.items() if name not in KNOWN_EXTRAS and value is not None)
    if unknown:
        raise BadInput(
            f"this model's attention needs {', '.join(unknown)}, which dtrain's document-by-document attention has not",
            key="attention", fix="set `attention: eager`",
        )  # fmt: skip


def refuse_warm(module: Any, lengths: Sequence[int]) -> None:
    """Llama 4 scales queries by their place in the row, not in their document (modeling_llama4.py)."""
    tuned = getattr(module, "attn_temperature_tuning", False) and not module.use_rope
    if tuned and len(lengths) > 1 and sum(lengths) >= module.floor_scale:
        raise BadInput(
            f"this model scales attention by the place in the row from {module.floor_scale} tokens on, so documents in "
            "one row would not be what each is alone",
            key="sample_packing", fix="set `sample_packing: false` and `micro_batch_size: 1`",
        )  # fmt: skip


def flash_in_sight(flash: Callable[..., Any], keeps_sinks: bool) -> Callable[..., Any]:
    """transformers' FlashAttention, told of windows that a model tells only to its masks. What it would drop without a
    word (chunks; sinks in version 2) goes the sdpa way."""

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **told: Any
    ) -> Any:
        sight = Sight.of(module, told.get("sliding_window"), UNLIMITED)
        if sight.chunk is not None or (told.get("s_aux") is not None and not keeps_sinks):
            return sdpa_by_document(module, query, key, value, attention_mask, **told)
        refuse_warm(module, told.get("document_lengths") or ())
        return flash(module, query, key, value, attention_mask, **(told | {"sliding_window": sight.window}))

    return attend


def register(asked: Sight = UNLIMITED) -> None:
    """Make the functions known to transformers; no mask is built for them. Rows may lie on several ranks.

    `asked`: the pattern or segment memory of the config, for the back ends that have them.
    """
    from transformers import AttentionInterface
    from transformers.integrations.flash_attention import flash_attention_forward

    from dtrain.train.attention_flex import flex_by_document

    AttentionInterface.register(SDPA, over_ranks(partial(sdpa_by_document, asked=asked)))
    AttentionInterface.register(VARLEN, over_ranks(varlen_by_document))
    AttentionInterface.register(FLEX, over_ranks(partial(flex_by_document, asked=asked)))
    for name in ("flash_attention_2", "flash_attention_3"):
        flash = flash_in_sight(flash_attention_forward, keeps_sinks=name == "flash_attention_3")
        AttentionInterface.register(name, over_ranks(flash))
