"""Sequence parallel (Ulysses): the ranks of a group share each row of tokens, and trade tokens for heads in attention.

Everywhere but in attention a rank holds its own consecutive part of the row. Around each attention call two exchanges
turn "my tokens, all heads" into "all tokens, my heads" and back. So attention sees whole documents: their boundaries,
which are those of the whole row, keep them apart exactly as on one rank, and windows stay what they are.

A parameter's gradient on one rank is that of the group's whole loss by this rank's tokens. The sum over all ranks is
therefore the gradient, and DeepSpeed, which is told nothing of sequence parallel, averages over all ranks as always: no
ZeRO stage scales it differently.

Shapes: B rows, P ranks of a group, t = T / P tokens of a rank, T of the row, H heads, h = H / P of a rank, D head size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from dtrain.errors import BadInput
from dtrain.planner.parallel import rope_problem
from dtrain.train.ranks import TIMEOUT, Ranks

Attention = Callable[..., tuple[Tensor, Tensor | None]]
"""transformers' attention interface: (B, H, T, D) in, (B, T, H, D) out."""


@dataclass(frozen=True)
class SequenceShard:
    """This rank's part of every row."""

    index: int
    size: int
    group: Any
    """The process group of the ranks that share a row, in the order of their parts. None sends nothing: for a trace,
    which only counts bytes."""

    def span(self, length: int) -> tuple[int, int]:
        """First and last (exclusive) token of this rank's part of a row whose length divides."""
        share = length // self.size
        return share * self.index, share * (self.index + 1)

    def total(self, number: Tensor) -> Tensor:
        """The sum over the group, without gradient."""
        summed = number.detach().clone()
        distributed.all_reduce(summed, group=self.group)
        return summed


def shard_of(ranks: Ranks, size: int) -> SequenceShard | None:
    """Neighbouring ranks share a row, so that they exchange over the fastest links. None without sequence parallel.

    A collective: every rank takes part in making every group.
    """
    if size == 1:
        return None
    groups = [
        distributed.new_group(list(range(first, first + size)), timeout=TIMEOUT)
        for first in range(0, ranks.world, size)
    ]
    return SequenceShard(ranks.rank % size, size, groups[ranks.rank // size])


def refuse_positions_by_length(model_config: Mapping[str, Any], size: int) -> None:
    """Before weights are loaded: a plan from a catalogue may not have seen how a model scales its positions."""
    if problem := rope_problem(model_config):
        raise BadInput(problem, key="sequence_parallel_size", value=size, fix="set `sequence_parallel_size: 1`")


class _Exchange(torch.autograd.Function):
    """Chunk p of the first dimension goes to rank p, and what came from rank p stands there. Its own transpose."""

    @staticmethod
    def forward(ctx: Any, chunks: Tensor, group: Any) -> Tensor:
        ctx.group = group
        sent, received = chunks.contiguous(), torch.empty_like(chunks, memory_format=torch.contiguous_format)
        if group is not None:
            distributed.all_to_all_single(received, sent, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Exchange.apply(grad, ctx.group), None  # type: ignore[no-untyped-call]


def all_tokens(mine_BHtD: Tensor, shard: SequenceShard, copies: int = 1) -> Tensor:
    """(B, h, T, D): all tokens of this rank's heads, after each head was repeated."""
    if copies > 1:
        mine_BHtD = mine_BHtD.repeat_interleave(copies, dim=1)
    batch, heads, length, width = mine_BHtD.shape
    chunks_BtPhD = mine_BHtD.transpose(1, 2).reshape(batch, length, shard.size, heads // shard.size, width)
    got_PBthD = _Exchange.apply(chunks_BtPhD.permute(2, 0, 1, 3, 4), shard.group)  # type: ignore[no-untyped-call]
    got_BThD = got_PBthD.transpose(0, 1).reshape(batch, shard.size * length, heads // shard.size, width)
    return got_BThD.transpose(1, 2)  # type: ignore[no-any-return]


def all_heads(mine_BThD: Tensor, shard: SequenceShard) -> Tensor:
    """(B, t, H, D): all heads of this rank's tokens."""
    batch, length, heads, width = mine_BThD.shape
    chunks_BPthD = mine_BThD.reshape(batch, shard.size, length // shard.size, heads, width)
    got_PBthD = _Exchange.apply(chunks_BPthD.transpose(0, 1), shard.group)  # type: ignore[no-untyped-call]
    got_BtPhD = got_PBthD.permute(1, 2, 0, 3, 4)
    return got_BtPhD.reshape(batch, length // shard.size, shard.size * heads, width)  # type: ignore[no-any-return]


def copies_of_kv_heads(kv_heads: int, size: int) -> int:
    """How often each key/value head is repeated so that every rank has those of its query heads: once where the heads
    divide, else up to the least common multiple (2 heads for 8 ranks: 4 copies)."""
    return math.lcm(kv_heads, size) // kv_heads


def over_ranks(attention: Attention) -> Attention:
    """The same attention where a row lies on several ranks; it acts only when a batch carries a `sequence_shard`."""

    @functools.wraps(attention)
    def exchanged(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None,
        sequence_shard: SequenceShard | None = None, **told: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        if sequence_shard is None:
            return attention(module, query, key, value, attention_mask, **told)
        _refuse_local(attention_mask)
        told.pop("position_ids", None)  # of this rank's tokens: the documents' boundaries say it for the whole row
        if told.get("s_aux") is not None:  # one learned sink for each head
            told["s_aux"] = told["s_aux"].chunk(sequence_shard.size)[sequence_shard.index]
        copies = copies_of_kv_heads(key.shape[1], sequence_shard.size)
        query = all_tokens(query, sequence_shard)
        key, value = (all_tokens(one, sequence_shard, copies) for one in (key, value))
        out, _ = attention(module, query, key, value, None, **told)
        return all_heads(out, sequence_shard), None

    return exchanged


def _refuse_local(mask: Tensor | None) -> None:
    """A mask made from this rank's tokens would be wrong for the whole row: never drop it in silence."""
    if mask is not None:
        raise BadInput(
            "this model's attention needs a mask, which cannot be shared out over ranks",
            key="sequence_parallel_size", fix="set `sequence_parallel_size: 1`",
        )  # fmt: skip
