"""A rank's own file of a checkpoint, read once: its bytes are hashed and put where they belong at the same time.

That is how a run goes on as it was. On another cut (`state_files.read`) files are verified first and then read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from dtrain.train import state_files
from dtrain.train.leaves import LEAF_BYTES, LeafReader, digest_of_read
from dtrain.train.partitions import Partition
from dtrain.train.state_files import MASTER, Stored
from dtrain.train.tensor_file import Extent, extents


@dataclass(frozen=True)
class Target:
    """Memory that bytes `begin` to `end` of the file fill."""

    begin: int
    end: int
    memory: Tensor
    """Flat, of bytes."""
    is_master: bool

    def take(self, offset: int, content: memoryview) -> None:
        first, last = max(self.begin, offset), min(self.end, offset + len(content))
        if first < last:
            part = torch.frombuffer(content[first - offset : last - offset], dtype=torch.uint8)
            self.memory[first - self.begin : last - self.begin].copy_(part)


@dataclass(frozen=True)
class OwnFile:
    path: Path
    stored: tuple[Stored, ...]
    extents: dict[str, Extent]

    @classmethod
    def of_same_cut(cls, path: Path, mine: Sequence[Partition]) -> OwnFile | None:
        """The file, where it holds exactly these partitions; None where it does not, or cannot be read."""
        try:
            found = cls(path, tuple(state_files.partitions_in(path)), extents(path))
        except Exception:  # damaged in any way: what reads it the other way says how
            return None
        return found if found._holds(mine) else None

    def _holds(self, mine: Sequence[Partition]) -> bool:
        wanted = [(partition.pieces, partition.master.numel(), partition.master.dtype) for partition in mine]
        masters = (self.extents[f"{one.index}.{MASTER}"] for one in self.stored)
        had = [(one.pieces, one.numel, at.dtype) for one, at in zip(self.stored, masters, strict=True)]
        return wanted == had and all(_is_whole(one) for one in self.extents.values())

    def targets(self, mine: Sequence[Partition]) -> Iterator[Target]:
        """Live memory: masters as they are, states made anew."""
        for partition, stored in zip(mine, self.stored, strict=True):
            for kind in sorted(stored.kinds):
                at = self.extents[f"{stored.index}.{kind}"]
                memory = partition.master if kind == MASTER else _new_state(partition, kind, at)
                yield Target(at.begin, at.end, memory.detach().reshape(-1).view(torch.uint8), kind == MASTER)


def _is_whole(at: Extent) -> bool:
    return at.end - at.begin == torch.Size(at.shape).numel() * at.dtype.itemsize


def _new_state(partition: Partition, kind: str, at: Extent) -> Tensor:
    numel = torch.Size(at.shape).numel()
    shape = partition.key.shape if numel == partition.master.numel() else torch.Size(at.shape)
    return partition.new_state(kind, shape, at.dtype)


class Filling:
    """Partitions that are being filled from their file, by threads that live as long as the context."""

    def __init__(self, own: OwnFile, mine: Sequence[Partition]) -> None:
        for partition, stored in zip(mine, own.stored, strict=True):
            state_files.put_scalars(partition, stored)
        self._targets = sorted(own.targets(mine), key=lambda target: target.end)
        self._ends = [target.end for target in self._targets]
        masters = [target for target in self._targets if target.is_master]
        self._sooner = sorted({number for target in masters for number in _leaves(target)})
        self._reader = LeafReader()
        self._read = self._reader.read(own.path, self._take, self._sooner)

    def _take(self, offset: int, content: memoryview) -> None:
        for target in self._targets[bisect_right(self._ends, offset) :]:
            if target.begin >= offset + len(content):
                break
            target.take(offset, content)

    def wait_for_masters(self) -> None:
        """OSError where one could not be read."""
        for number in self._sooner:
            self._read[number].result()

    def digest(self) -> str:
        """Of the file, when all of it is in its place."""
        return digest_of_read(self._read)

    def __enter__(self) -> Filling:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._reader.close()


def _leaves(target: Target) -> range:
    return range(target.begin // LEAF_BYTES, -(-target.end // LEAF_BYTES))
