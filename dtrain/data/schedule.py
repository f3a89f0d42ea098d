"""Which rows form which step, on which rank, in which micro-batch: a pure function, known before anything starts.

    rows ──pack──▶ slots ──order of the epoch──▶ steps ──deal──▶ micro-batches of ranks

A slot is one row, or several that share a window when packing. A step takes the next `world * micro_batch_size *
accumulation` slots of the epoch, so how these three multiply to it changes who computes a slot, never which step it is
in. The last step of an epoch may be smaller. Any step can be asked for; only its epoch's order is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dtrain.data.pack import IntArray, Packing, best_fit, next_fit

Slot = tuple[int, ...]
"""Row numbers."""
MicroBatch = tuple[tuple[Slot, ...], ...]
"""For each rank its slots; empty where a rank has nothing to do."""


@dataclass(frozen=True)
class Step:
    epoch: float
    """Progress after this step, in epochs."""
    tokens: int
    """Over all ranks and micro-batches."""
    trained_tokens: int
    """Positions with a loss, over all ranks and micro-batches: what the summed loss is divided by."""
    micro: tuple[MicroBatch, ...]


@dataclass(frozen=True, eq=False)
class Epoch:
    """All slots of one epoch in training order: slot `s` is `rows[starts[s]:starts[s + 1]]`."""

    rows: IntArray
    starts: IntArray

    def slot(self, index: int) -> Slot:
        return tuple(self.rows[self.starts[index] : self.starts[index + 1]].tolist())

    def slot_sums(self, per_row: IntArray) -> IntArray:
        """A figure of the rows, added up per slot."""
        sums = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(per_row[self.rows])])
        return np.asarray(sums[self.starts[1:]] - sums[self.starts[:-1]])


@dataclass(frozen=True, eq=False)
class Order:
    """How rows become the slots of an epoch. The number of slots, and their sizes, are the same in every epoch."""

    packing: Packing
    by_length: IntArray
    """Places of the packing (positions in `packing.lengths`), shortest first."""
    row_lengths: IntArray
    seed: int | None
    """None keeps the order of the file."""

    @property
    def slots(self) -> int:
        return len(self.packing.starts) - 1

    def epoch(self, index: int) -> Epoch:
        """Rows of equal length take each other's places, and the slots trade theirs, by (seed, epoch)."""
        if self.seed is None:
            return Epoch(np.arange(len(self.row_lengths), dtype=np.int64), self.packing.starts)
        shuffled = permutation(self.seed, index, 0, len(self.row_lengths))
        placed = np.empty_like(shuffled)
        placed[self.by_length] = shuffled[np.argsort(self.row_lengths[shuffled], kind="stable")]
        return _take_slots(placed, self.packing.starts, permutation(self.seed, index, 1, self.slots))


@dataclass(frozen=True, eq=False)
class _Figures:
    """An epoch with the tokens of each slot."""

    epoch: Epoch
    tokens: IntArray
    trained: IntArray


@dataclass(frozen=True, eq=False)
class Schedule:
    lengths: IntArray
    trained: IntArray
    order: Order
    world: int
    micro_batch_size: int
    accumulation: int
    steps: int
    steps_per_epoch: int
    _latest: dict[int, _Figures] = field(default_factory=dict, repr=False)
    """The epoch that was asked for last."""

    @property
    def step_slots(self) -> int:
        return self.world * self.micro_batch_size * self.accumulation

    @property
    def balanced(self) -> bool:
        return self.order.seed is not None

    def step(self, index: int) -> Step:
        """Step `index` of the run, from 0."""
        if not 0 <= index < self.steps:
            raise IndexError(f"step {index} of {self.steps}")
        epoch, within = divmod(index, self.steps_per_epoch)
        figures = self._figures(epoch)
        slots = range(within * self.step_slots, min((within + 1) * self.step_slots, self.order.slots))
        tokens = figures.tokens[slots.start : slots.stop]
        return Step(
            epoch=(index + 1) / self.steps_per_epoch,
            tokens=int(tokens.sum()),
            trained_tokens=int(figures.trained[slots.start : slots.stop].sum()),
            micro=tuple(
                tuple(tuple(figures.epoch.slot(slots[position]) for position in rank) for rank in ranks)
                for ranks in deal(tokens, self.world, self.micro_batch_size, self.balanced)
            ),
        )

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Step]:
        return (self.step(index) for index in range(self.steps))

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        epochs, rest = divmod(self.steps, self.steps_per_epoch)
        partial = int(self._figures(epochs).tokens[: rest * self.step_slots].sum()) if rest else 0
        return epochs * int(self.lengths.sum()) + partial

    def longest(self, rank: int) -> tuple[Slot, ...]:
        """The micro-batch with the most tokens that the run ever asks of `rank`, for a pass before step 1."""
        most, where = -1, (0, 0)
        for epoch in range(math.ceil(self.steps / self.steps_per_epoch)):
            figures = self._figures(epoch)
            tokens, step, micro = self._heaviest(figures, epoch, rank)
            if tokens > most:
                most, where = tokens, (step, micro)
            if most >= int(np.sort(figures.tokens)[-self.micro_batch_size :].sum()):
                break  # no epoch has heavier slots
        return self.step(where[0]).micro[where[1]][rank]

    def _heaviest(self, figures: _Figures, epoch: int, rank: int) -> tuple[int, int, int]:
        """(tokens, step of the run, micro-batch) of the heaviest work of `rank` in one epoch."""
        first = epoch * self.steps_per_epoch
        asked = figures.tokens[: (self.steps - first) * self.step_slots]
        full = len(asked) // self.step_slots
        found = [(0, first, 0)]
        if full:
            table = asked[: full * self.step_slots].reshape(full, self.step_slots)
            places = deal(np.zeros(self.step_slots, dtype=np.int64), self.world, self.micro_batch_size, self.balanced)
            if self.balanced:
                table = np.sort(table, axis=1)[:, ::-1]
            sums = table[:, np.asarray([ranks[rank] for ranks in places])].sum(axis=2)  # [step, micro-batch]
            step, micro = divmod(int(sums.argmax()), len(places))
            found.append((int(sums.max()), first + step, micro))
        rest = asked[full * self.step_slots :]
        for micro, ranks in enumerate(deal(rest, self.world, self.micro_batch_size, self.balanced)):
            found.append((int(rest[ranks[rank]].sum()) if ranks[rank] else 0, first + full, micro))
        return max(found, key=lambda one: one[0])

    def _figures(self, epoch: int) -> _Figures:
        if epoch not in self._latest:
            order = self.order.epoch(epoch)
            self._latest.clear()
            self._latest[epoch] = _Figures(order, order.slot_sums(self.lengths), order.slot_sums(self.trained))
        return self._latest[epoch]


def make_schedule(
    lengths: npt.ArrayLike,
    trained: npt.ArrayLike,
    *,
    window: int,
    packing: bool,
    shuffle: bool,
    seed: int,
    world: int,
    micro_batch_size: int,
    accumulation: int,
    epochs: float,
    max_steps: int | None,
) -> Schedule:
    """The whole run's batches. `lengths` and `trained` are tokens and trained positions per row, `window` in tokens.

    The run ends after `max_steps` where they are given (Axolotl's rule: they precede epochs, and may pass them), else
    after `epochs` (fractions round up to a step).
    """
    row_lengths = np.asarray(lengths, dtype=np.int64)
    if not len(row_lengths):
        raise ValueError("no rows to schedule")
    order = make_order(row_lengths, window, packing, seed if shuffle else None)
    steps_per_epoch = math.ceil(order.slots / (world * micro_batch_size * accumulation))
    steps = max(1, math.ceil(round(epochs * steps_per_epoch, 6)))  # 0.1 * 30 is a little above 3
    return Schedule(
        lengths=row_lengths,
        trained=np.asarray(trained, dtype=np.int64),
        order=order,
        world=world,
        micro_batch_size=micro_batch_size,
        accumulation=accumulation,
        steps=steps if max_steps is None else max_steps,
        steps_per_epoch=steps_per_epoch,
    )


def eval_batches(
    lengths: npt.ArrayLike, world: int, micro_batch_size: int, window: int, packing: bool
) -> tuple[MicroBatch, ...]:
    """Every row once, in file order, in the shape of `Step.micro`."""
    row_lengths = np.asarray(lengths, dtype=np.int64)
    order = make_order(row_lengths, window, packing, seed=None)
    epoch = order.epoch(0)
    dealt = deal(epoch.slot_sums(row_lengths), world, micro_batch_size, balanced=False)
    return tuple(tuple(tuple(epoch.slot(position) for position in rank) for rank in ranks) for ranks in dealt)


def make_order(row_lengths: IntArray, window: int, packing: bool, seed: int | None) -> Order:
    """`seed` None: rows in the given order, packed by next fit; otherwise best fit and a new order each epoch."""
    if not packing:
        packed = Packing(row_lengths, np.arange(len(row_lengths) + 1, dtype=np.int64))
    elif seed is None:
        packed = next_fit(row_lengths, window)
    else:
        packed = best_fit(row_lengths, window)
    return Order(packed, np.argsort(packed.lengths, kind="stable"), row_lengths, seed)


def deal(tokens: IntArray, world: int, micro_batch_size: int, balanced: bool) -> list[list[list[int]]]:
    """Positions of a step's slots, by micro-batch and rank. Empty micro-batches are left out.

    Balanced: slots sorted by size go round the ranks like a snake, so micro-batches hold slots of like size and ranks
    carry about equal tokens. Otherwise consecutive slots, ranks in order, an incomplete micro-batch shared out evenly.
    """
    order = np.argsort(-tokens, kind="stable").tolist() if balanced else list(range(len(tokens)))
    together = world * micro_batch_size
    chunks = [order[first : first + together] for first in range(0, len(order), together)]
    return [(_snake if balanced else _consecutive)(chunk, world) for chunk in chunks]


def _snake(chunk: list[int], world: int) -> list[list[int]]:
    ranks: list[list[int]] = [[] for _ in range(world)]
    for place, position in enumerate(chunk):
        turn, rank = divmod(place, world)
        ranks[rank if turn % 2 == 0 else world - 1 - rank].append(position)
    return ranks


def _consecutive(chunk: list[int], world: int) -> list[list[int]]:
    cuts = [-(-rank * len(chunk) // world) for rank in range(world + 1)]
    return [chunk[first:last] for first, last in pairwise(cuts)]


def permutation(seed: int, epoch: int, what: int, size: int) -> IntArray:
    """A permutation of `range(size)`.

    Made from raw bits: numpy keeps bit streams the same over its versions, `Generator.permutation` it does not.
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed % 2**64, epoch, what]))
    return np.argsort(bits.random_raw(size), kind="stable")


def _take_slots(rows: IntArray, starts: IntArray, order: IntArray) -> Epoch:
    """Slots in another order: row numbers gathered slot by slot without a loop."""
    sizes = np.diff(starts)[order]
    new_starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])
    within = np.arange(len(rows), dtype=np.int64) - np.repeat(new_starts[:-1], sizes)
    return Epoch(rows[np.repeat(starts[order], sizes) + within], new_starts)
