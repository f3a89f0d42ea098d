"""Tokenised rows on disk: flat arrays, memory-mapped, nothing decoded until asked."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]

NOT_TRAINED = -100
"""The label of a position without a loss (torch's cross_entropy ignores it)."""

_FILES = ("ids", "labels", "lengths", "trained")


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The rows of one split."""

    lengths: Int32Array
    """[rows] tokens per row."""
    trained: Int32Array
    """[rows] positions with a loss: labels[1:] that are not -100."""
    _ids: Int32Array = field(repr=False)
    _labels: Int32Array = field(repr=False)
    _starts: npt.NDArray[np.int64] = field(repr=False)

    def ids(self, row: int) -> Int32Array:
        """[length] token ids."""
        return self._ids[self._starts[row] : self._starts[row + 1]]

    def labels(self, row: int) -> Int32Array:
        """[length] the token id where trained, else -100. Not shifted: labels[i] belongs to ids[i]."""
        return self._labels[self._starts[row] : self._starts[row + 1]]

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def open(cls, folder: Path) -> TokenRows:
        ids, labels, lengths, trained = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in _FILES)
        starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
        if len(ids) != starts[-1] or len(labels) != starts[-1] or len(trained) != len(lengths):
            raise ValueError(f"{folder}: the arrays do not belong together")
        return cls(lengths, trained, ids, labels, starts)


class RowsWriter:
    """Appends rows to a folder without holding them in memory; complete when the `with` block ends."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._arrays = {name: _GrowingArray(folder / f"{name}.npy") for name in _FILES}
        self.rows = self.tokens = self.trained_tokens = self.longest = 0

    def write(self, ids: list[int], labels: list[int]) -> None:
        trained = trained_positions(labels)
        for name, values in zip(_FILES, (ids, labels, [len(ids)], [trained]), strict=True):
            self._arrays[name].append(values)
        self.rows += 1
        self.tokens += len(ids)
        self.trained_tokens += trained
        self.longest = max(self.longest, len(ids))

    def __enter__(self) -> RowsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for array in self._arrays.values():
            array.close()


class _GrowingArray:
    """A one-dimensional int32 .npy whose length is known only at the end."""

    def __init__(self, path: Path) -> None:
        self._stream: BinaryIO = path.open("wb")
        self._length = 0
        self._header()

    def append(self, values: list[int]) -> None:
        self._stream.write(np.asarray(values, dtype="<i4").tobytes())
        self._length += len(values)

    def close(self) -> None:
        self._stream.seek(0)
        self._header()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def _header(self) -> None:
        # numpy pads the header so that the growing axis can be rewritten in place (GROWTH_AXIS_MAX_DIGITS).
        header: dict[str, Any] = {"descr": "<i4", "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._stream, header)


def trained_positions(labels: list[int]) -> int:
    """Positions with a loss: the first label has none, for nothing predicts it."""
    return len(labels) - labels.count(NOT_TRAINED) - (labels[:1] != [NOT_TRAINED] and len(labels) > 0)


def checksums(folder: Path) -> dict[str, list[int]]:
    """`{file name: [bytes, crc32]}` of a folder of rows, to tell a damaged one."""
    return {path.name: [path.stat().st_size, _crc32(path)] for path in sorted(folder.glob("*.npy"))}


def _crc32(path: Path) -> int:
    found = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            found = zlib.crc32(block, found)
    return found
