"""From slots of a schedule to the tensors of one micro-batch. Shapes: B rows, T tokens, N trained positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dtrain.data.rows import TokenRows
from dtrain.train.sequence_parallel import SequenceShard

Slots = Sequence[Sequence[int]]
"""Rows of a micro-batch on one rank: each slot is one row, or several when packed."""


@dataclass(frozen=True)
class Batch:
    ids_BT: Tensor
    position_ids_BT: Tensor
    """Restart at each document."""
    positions_N: Tensor
    """Indices into the flattened B*T whose next token is trained."""
    targets_N: Tensor
    """That next token."""
    weight: float = 1.0
    """0 for a batch that only keeps a rank in step with the others."""
    attention_arguments: dict[str, Any] = field(default_factory=dict)


def flat_batch(
    rows: TokenRows, slots: Slots, device: torch.device, weight: float = 1.0, shard: SequenceShard | None = None
) -> Batch:
    """All rows of all slots behind each other in one row of tokens: no padding, documents kept apart by attention.

    With `shard` only that part of the row, filled up to equal parts by a last document that is not trained. What
    attention is told of documents stays that of the whole row.
    """
    order = [row for slot in slots for row in slot]
    lengths = [int(rows.lengths[row]) for row in order]
    parts = [rows.ids(row) for row in order]
    filling = -sum(lengths) % (shard.size if shard else 1)
    if filling:
        lengths.append(filling)
        parts.append(np.zeros(filling, dtype=np.int32))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    positions, targets = _trained(rows, order, starts[: len(order)])
    ids, position_ids = np.concatenate(parts), np.concatenate([np.arange(length) for length in lengths])
    if shard is not None:
        first, last = shard.span(len(ids))
        ids, position_ids = ids[first:last], position_ids[first:last]
        here = slice(*np.searchsorted(positions, [first, last]))
        positions, targets = positions[here] - first, targets[here]
    cu_seq_lens = torch.from_numpy(starts.astype(np.int32)).to(device, non_blocking=True)
    return Batch(
        ids_BT=_tensor(ids, device)[None],
        position_ids_BT=_tensor(position_ids, device)[None],
        positions_N=_tensor(positions, device),
        targets_N=_tensor(targets, device),
        weight=weight,
        attention_arguments={
            "document_lengths": tuple(lengths),
            "cu_seq_lens_q": cu_seq_lens, "cu_seq_lens_k": cu_seq_lens,
            "max_length_q": max(lengths), "max_length_k": max(lengths),
            **({"sequence_shard": shard} if shard else {}),
        },
    )  # fmt: skip


def padded_batch(rows: TokenRows, slots: Slots, device: torch.device, filler_id: int, weight: float = 1.0) -> Batch:
    """One row of tokens a slot, filled up on the right: for models whose attention cannot keep documents apart.

    No mask is needed: causal attention of real tokens never reaches the filling, and the filling is never trained.
    """
    order = [row for slot in slots for row in slot]
    width = max(int(rows.lengths[row]) for row in order)
    ids = np.full((len(order), width), filler_id, dtype=np.int64)
    for index, row in enumerate(order):
        ids[index, : rows.lengths[row]] = rows.ids(row)
    positions, targets = _trained(rows, order, np.arange(len(order)) * width)
    position_ids = np.broadcast_to(np.arange(width), ids.shape)
    return Batch(
        ids_BT=_tensor(ids, device),
        position_ids_BT=_tensor(np.ascontiguousarray(position_ids), device),
        positions_N=_tensor(positions, device),
        targets_N=_tensor(targets, device),
        weight=weight,
    )


def _trained(rows: TokenRows, order: Sequence[int], starts: Any) -> tuple[Any, Any]:
    """Positions whose next token carries a label, and those labels. A row's first token is nobody's next."""
    positions, targets = [], []
    for row, start in zip(order, starts, strict=True):
        following = rows.labels(row)[1:]
        at = np.flatnonzero(following != -100)
        positions.append(at + start)
        targets.append(following[at])
    return np.concatenate(positions), np.concatenate(targets)


def _tensor(values: Any, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.asarray(values, dtype=np.int64))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
