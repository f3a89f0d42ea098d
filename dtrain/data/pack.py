"""Which rows share a slot: best fit when the order is free, next fit when it is not.

A slot holds whole rows whose tokens add up to at most the window. Rows are never cut.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packing:
    """Slots by the lengths of their rows: slot `s` holds rows of lengths `lengths[starts[s]:starts[s + 1]]`."""

    lengths: IntArray
    starts: IntArray


def next_fit(lengths: npt.ArrayLike, window: int) -> Packing:
    """Fill slots in the given order; a row that does not fit opens the next slot."""
    wanted = _checked(lengths, window)
    ends = np.cumsum(wanted)
    starts, first, used = [0], 0, 0
    while first < len(wanted):
        # The last row whose cumulative end still lies within this slot's window.
        first = int(np.searchsorted(ends, used + window, side="right"))
        used = int(ends[first - 1])
        starts.append(first)
    return Packing(wanted, np.asarray(starts, dtype=np.int64))


def best_fit(lengths: npt.ArrayLike, window: int) -> Packing:
    """Best fit decreasing over a histogram: rows of one length are interchangeable, so they are placed together.

    The cost grows with the number of distinct lengths, not with the number of rows.
    """
    sizes, counts = np.unique(_checked(lengths, window), return_counts=True)
    shelf = _Shelf(window)
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        shelf.place(size, count)
    return shelf.packing()


def _checked(lengths: npt.ArrayLike, window: int) -> IntArray:
    wanted = np.asarray(lengths, dtype=np.int64)
    if len(wanted) and (int(wanted.max()) > window or int(wanted.min()) < 1):
        raise ValueError(f"row lengths must lie in 1..{window}, found {int(wanted.min())}..{int(wanted.max())}")
    return wanted


@dataclass(frozen=True)
class _Content:
    """`times` rows of `size` tokens on top of what was there before: a list that many slots share."""

    size: int
    times: int
    below: _Content | None

    def rows(self) -> list[int]:
        found: list[int] = []
        content: _Content | None = self
        while content is not None:
            found.extend([content.size] * content.times)
            content = content.below
        return found[::-1]


@dataclass
class _Shelf:
    """Open slots grouped by the space left in them; a group is a number of slots with equal content."""

    window: int
    groups: dict[int, list[tuple[int, _Content]]] = field(default_factory=dict)
    spaces: list[int] = field(default_factory=list)
    """The keys of `groups`, sorted, to find the tightest fit by bisection."""

    def place(self, size: int, count: int) -> None:
        """Put `count` rows of `size` tokens into the tightest slots that take them, then into new ones."""
        while count:
            at = bisect_left(self.spaces, size)
            if at == len(self.spaces):
                self._fill(self.window, -(-count // (self.window // size)), None, size, count)
                return
            space = self.spaces[at]
            slots, content = self._take(space)
            count -= self._fill(space, slots, content, size, count)

    def _fill(self, space: int, slots: int, content: _Content | None, size: int, count: int) -> int:
        """Fill equal slots one after another as far as `count` goes; what is left of the group stays. Rows placed."""
        each = space // size
        full = min(slots, count // each)
        rest = min(count - full * each, each) if full < slots else 0
        self._put(space - each * size, full, _Content(size, each, content))
        if rest:
            self._put(space - rest * size, 1, _Content(size, rest, content))
        untouched = slots - full - bool(rest)
        if untouched and content is not None:
            self._put(space, untouched, content)
        return full * each + rest

    def _take(self, space: int) -> tuple[int, _Content]:
        group = self.groups[space]
        taken = group.pop()
        if not group:
            del self.groups[space]
            del self.spaces[bisect_left(self.spaces, space)]
        return taken

    def _put(self, space: int, slots: int, content: _Content) -> None:
        if not slots:
            return
        if space not in self.groups:
            self.groups[space] = []
            insort(self.spaces, space)
        self.groups[space].append((slots, content))

    def packing(self) -> Packing:
        groups = [(slots, content.rows()) for space in self.spaces for slots, content in self.groups[space]]
        lengths = [np.tile(np.asarray(rows, dtype=np.int64), slots) for slots, rows in groups]
        sizes = [np.full(slots, len(rows), dtype=np.int64) for slots, rows in groups]
        none = np.zeros(0, dtype=np.int64)
        starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate([none, *sizes]))])
        return Packing(np.concatenate([none, *lengths]), starts)
