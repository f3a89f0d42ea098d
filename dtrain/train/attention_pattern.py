"""Sparse attention of decoder models: which earlier tokens of its document a token sees, as boolean masks.

A token sees itself and `window - 1` tokens before it (sliding); also a document's first `global_tokens` (longformer,
arXiv 2004.05150); also `random_blocks` earlier blocks of `block_tokens`, drawn for each block of tokens (bigbird,
arXiv 2007.14062; the same draw in all layers). Nothing later is ever seen: global tokens themselves see the past only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dtrain.config.schema import AttentionPattern

Sees = Callable[[Tensor, Tensor], Tensor]
"""Places of queries and of keys in their document → may the one see the other; what is later is judged elsewhere."""


def sees(pattern: AttentionPattern, length: int, device: torch.device) -> Sees:
    """The rule for documents of at most `length` tokens."""
    drawn = _drawn_blocks(pattern, length, device) if pattern.random_blocks else None

    def allowed(query: Tensor, key: Tensor) -> Tensor:
        near = (query - key < pattern.window) | (key < pattern.global_tokens)
        if drawn is None:
            return near
        return near | drawn[query // pattern.block_tokens, key // pattern.block_tokens]

    return allowed


@lru_cache(maxsize=8)
def _drawn_blocks(pattern: AttentionPattern, length: int, device: torch.device) -> Tensor:
    """(blocks, blocks) booleans. A block's draw depends on its number and the seed only, never on the length."""
    blocks = -(-length // pattern.block_tokens)
    table = np.zeros((blocks, blocks), dtype=bool)
    for block in range(1, blocks):
        generator = np.random.default_rng((pattern.seed, block))
        table[block, generator.choice(block, size=min(pattern.random_blocks, block), replace=False)] = True
    return torch.from_numpy(table).to(device)


@lru_cache(maxsize=8)
def dense_mask(pattern: AttentionPattern, length: int, device: torch.device) -> Tensor:
    """(length, length) booleans of one document, causal."""
    place = torch.arange(length, device=device)
    query, key = place[:, None], place[None, :]
    return (key <= query) & sees(pattern, length, device)(query, key)
