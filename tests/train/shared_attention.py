"""Attention over a row that lies on all ranks against the same attention over the whole row: outputs and gradients."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from dtrain.config.schema import AttentionPattern
from dtrain.train.attention import Sight, sdpa_by_document
from dtrain.train.ranks import Ranks
from dtrain.train.sequence_parallel import SequenceShard, over_ranks, shard_of

LENGTHS = (11, 20, 29)
"""Of three documents in a row; no boundary lies between two ranks."""
PATTERN = AttentionPattern(kind="bigbird", window=4, global_tokens=1, random_blocks=1, block_tokens=4)
KINDS: dict[str, tuple[Sight, int, int]] = {
    "documents": (Sight(), 2, 8),
    "one key head": (Sight(), 1, 8),
    "windows": (Sight(window=5), 2, 8),
    "chunks": (Sight(chunk=7), 2, 8),
    "pattern": (Sight(pattern=PATTERN), 2, 8),
    "segment memory": (Sight(memory=6), 2, 8),
    "narrow values": (Sight(), 4, 6),
}
"""What a token sees, key/value heads of four query heads, width of a value."""


def differences(ranks: Ranks) -> dict[str, float]:
    """The largest difference of any output or gradient on this rank, by kind."""
    shard = shard_of(ranks, ranks.world)
    assert shard is not None
    return {kind: _difference(shard, *KINDS[kind]) for kind in KINDS}


def _difference(shard: SequenceShard, sight: Sight, kv_heads: int, width: int) -> float:
    torch.manual_seed(0)
    tokens = sum(LENGTHS)
    shapes = ((4, tokens, 8), (kv_heads, tokens, 8), (kv_heads, tokens, width), (4, tokens, width))
    *inputs, weight = (torch.randn(1, *shape) for shape in shapes)
    mine = slice(*shard.span(tokens))
    attention, module = partial(sdpa_by_document, asked=sight), torch.nn.Module()

    def run(tensors: list[Tensor], weight: Tensor, shared: bool) -> list[Tensor]:
        tensors = [tensor.clone().requires_grad_() for tensor in tensors]
        told = {"sequence_shard": shard} if shared else {}
        out, _ = over_ranks(attention)(module, *tensors, document_lengths=LENGTHS, **told)
        gradients = torch.autograd.grad((out.transpose(1, 2) * weight).sum(), tensors)
        return [out.detach().transpose(1, 2), *gradients]

    whole = run(inputs, weight, shared=False)
    parts = run([tensor[:, :, mine] for tensor in inputs], weight[:, :, mine], shared=True)
    return max((part - one[:, :, mine]).abs().max().item() for part, one in zip(parts, whole, strict=True))
