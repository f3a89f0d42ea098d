"""Optimizer states in 8 bits, as bitsandbytes keeps them: codes into a sorted book, scaled by each block's maximum.

A block is 256 elements in a row of a partition, so a new cut of the partitions makes new blocks: the numbers are taken
out of the old blocks and rounded to the nearest codes of the new ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256
"""bitsandbytes/optim/optimizer.py, `Optimizer2State.init_state`."""
LEAST_NUMEL = 4096
"""Smaller tensors keep 32-bit states (bitsandbytes' min_8bit_size)."""


def dequantised(codes: Tensor, maxima: Tensor, book: Tensor) -> Tensor:
    """fp32 numbers of whole blocks (the last may be short)."""
    return book[codes.reshape(-1).long()] * maxima.repeat_interleave(BLOCK)[: codes.numel()]


def quantised(numbers: Tensor, book: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (uint8) and blocks' maxima of flat fp32 numbers: each goes to the nearest entry of the sorted book."""
    blocks = -(-numbers.numel() // BLOCK)
    padded = torch.zeros(blocks * BLOCK)
    padded[: numbers.numel()] = numbers
    maxima = padded.reshape(blocks, BLOCK).abs().amax(dim=1)
    scaled = (padded.reshape(blocks, BLOCK) / maxima.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).reshape(-1)
    middles = (book[1:] + book[:-1]) / 2
    return torch.bucketize(scaled, middles)[: numbers.numel()].to(torch.uint8), maxima
