"""Bare PyTorch loops, as one writes them: transformers' own forward pass and loss, AdamW, clipping, nothing else.

    packed     windows of several rows, kept apart by `position_ids` (transformers makes a block-diagonal mask of them)
    padded     rows of a random batch filled up to its longest, with an attention mask
    sorted     the same with rows of like length together

Shapes: B rows, T tokens.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.step_overhead import workload as settings
from benchmarks.step_overhead.workload import Workload
from dtrain.data.rows import NOT_TRAINED

Inputs = dict[str, torch.Tensor]


def padded(workload: Workload, batch: Sequence[int]) -> Inputs:
    """ids_BT, labels_BT and attention_mask_BT of rows side by side."""
    rows = workload.token_rows
    width = max(int(rows.lengths[row]) for row in batch)
    ids = np.full((len(batch), width), settings.PAD_ID, dtype=np.int64)
    labels, mask = np.full_like(ids, NOT_TRAINED), np.zeros_like(ids)
    for place, row in enumerate(batch):
        length = int(rows.lengths[row])
        ids[place, :length], labels[place, :length], mask[place, :length] = rows.ids(row), rows.labels(row), 1
    return _tensors(input_ids=ids, labels=labels, attention_mask=mask)


def packed(workload: Workload, windows: Sequence[Sequence[int]]) -> Inputs:
    """ids_BT, labels_BT and position_ids_BT of windows; the rest of a window is one more document of filling."""
    shape = (len(windows), workload.window)
    ids, labels = np.full(shape, settings.PAD_ID, dtype=np.int64), np.full(shape, NOT_TRAINED, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    rows = workload.token_rows
    for place, window in enumerate(windows):
        at = 0
        for row in window:
            end = at + int(rows.lengths[row])
            ids[place, at:end], labels[place, at:end] = rows.ids(row), rows.labels(row)
            labels[place, at] = NOT_TRAINED  # the loss shifts over the border: the first token is nobody's next
            positions[place, at:end] = np.arange(end - at)
            at = end
        positions[place, at:] = np.arange(workload.window - at)
    return _tensors(input_ids=ids, labels=labels, position_ids=positions)


def _tensors(**arrays: Any) -> Inputs:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def steps_of(workload: Workload, kind: str, world: int) -> list[list[Any]]:
    """One epoch: for each step the units (rows or windows) of each rank, not yet tensors."""
    if kind == "packed":
        units: Sequence[Any] = workload.windows
        size = workload.windows_per_step
        batches: list[Any] = [units[first : first + size] for first in range(0, len(units), size)]
    else:
        batches = list(workload.random_batches if kind == "padded" else workload.sorted_batches)
    return [batches[first : first + world] for first in range(0, len(batches), world)]


def collate(workload: Workload, kind: str, batch: Any) -> Inputs:
    return packed(workload, batch) if kind == "packed" else padded(workload, batch)


def optimizer_of(model: torch.nn.Module) -> torch.optim.AdamW:
    """Norms are not decayed, as everywhere in this benchmark."""
    parameters = dict(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in parameters.items() if "norm" not in name]},
        {"params": [p for name, p in parameters.items() if "norm" in name], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=settings.LEARNING_RATE, weight_decay=settings.WEIGHT_DECAY, fused=True,
    )  # fmt: skip


def trained_in(workload: Workload, kind: str, step: Sequence[Any]) -> int:
    """Trained tokens of all ranks in one step: what the summed loss is divided by."""
    groups = itertools.chain.from_iterable(step)
    rows = itertools.chain.from_iterable(groups) if kind == "packed" else groups
    return int(sum(workload.token_rows.trained[row] for row in rows))


def shares(workload: Workload, kind: str, rank: int, world: int) -> Iterator[tuple[Inputs, int]]:
    """Forever: this rank's inputs of a step, and the step's trained tokens over all ranks."""
    epoch = steps_of(workload, kind, world)
    for step in itertools.cycle(epoch):
        yield collate(workload, kind, step[rank % len(step)]), trained_in(workload, kind, step)


def run(workload: Workload, options: dict[str, Any], start_clock: settings.StartClock) -> None:
    """One process, or DistributedDataParallel over gloo."""
    kind, rank, world = str(options["batches"]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    model: Any = workload.model().train()
    optimizer = optimizer_of(model)
    forward = model
    if world > 1:
        torch.distributed.init_process_group("gloo")
        forward = torch.nn.parallel.DistributedDataParallel(model)
    clock = start_clock(len(steps_of(workload, kind, world)))
    for inputs, trained in shares(workload, kind, rank, world):
        loss = forward(**inputs, use_cache=False, num_items_in_batch=trained).loss * world
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()


def run_deepspeed(workload: Workload, options: dict[str, Any], start_clock: settings.StartClock) -> None:
    """A bare DeepSpeed loop: its own defaults but for the stage, the batch and the clipping."""
    import deepspeed

    kind, rank, world = str(options["batches"]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    model = workload.model().train()
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer_of(model),
        config={
            "train_micro_batch_size_per_gpu": 1, "gradient_clipping": settings.MAX_GRAD_NORM,
            "zero_optimization": {"stage": int(options["zero_stage"])}, "zero_allow_untested_optimizer": True,
            "steps_per_print": 2**31,
        },
    )  # fmt: skip
    clock = start_clock(len(steps_of(workload, kind, world)))
    for inputs, trained in shares(workload, kind, rank, world):
        engine.backward(engine(**inputs, use_cache=False, num_items_in_batch=trained).loss * world)
        engine.step()
        clock.tick()
