"""Files that are hashed in leaves: a tree hash, so that several threads hash one file, while it is written and read.

The digest of a file is SHA-256 over the SHA-256 digests of its leaves, LEAF_BYTES each; the last one may be shorter.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

LEAF_BYTES = 8 * 2**20
"""Part of the format. Large enough that Python's own time does not count, small enough for a thread's buffer."""
LEAST_THREADS = 4
"""Of one rank: while some of them hash, others wait for the disk."""
MOST_THREADS = 8
"""Of one rank. Each reads and hashes about 1 GiB/s (SHA-256 in hardware: 1.5): more than a disk gives to eight."""

Take = Callable[[int, memoryview], None]
"""Is handed bytes of a file and the offset they are from, in any order, by several threads at once."""


def digest_of_leaves(leaves: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(leaves)).hexdigest()


class LeafHasher:
    """What is written one after the other, hashed beside by the threads of a pool."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._parts: list[memoryview] = []
        self._filled = 0
        self._leaves: list[Future[bytes]] = []
        self._behind: deque[Future[bytes]] = deque()

    def add(self, chunk: memoryview) -> None:
        """The bytes must not change until they are hashed."""
        while chunk:
            part = chunk[: LEAF_BYTES - self._filled]
            self._parts.append(part)
            self._filled += len(part)
            if self._filled == LEAF_BYTES:
                self._send()
            chunk = chunk[len(part) :]

    def _send(self) -> None:
        leaf = self._pool.submit(_digest, self._parts)
        self._leaves.append(leaf)
        self._behind.append(leaf)
        self._parts, self._filled = [], 0

    def wait_until_behind(self, bytes_at_most: int) -> None:
        """No more than so many bytes wait to be hashed then."""
        while len(self._behind) * LEAF_BYTES > bytes_at_most:
            self._behind.popleft().result()

    def digest(self) -> str:
        if self._parts:
            self._send()
        return digest_of_leaves(leaf.result() for leaf in self._leaves)


def _digest(parts: Sequence[memoryview]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def reading_threads() -> int:
    """This rank's share of the machine's cores."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(LEAST_THREADS, min(MOST_THREADS, cores))


class LeafReader:
    """Reads files once, by several threads: each leaf is hashed and handed on."""

    def __init__(self, threads: int | None = None) -> None:
        threads = threads or reading_threads()
        self._pool = ThreadPoolExecutor(threads, "leaf")
        self._buffers: SimpleQueue[mmap.mmap] = SimpleQueue()
        for _ in range(threads):
            self._buffers.put(mmap.mmap(-1, LEAF_BYTES))

    def read(self, path: Path, take: Take, sooner: Iterable[int] = ()) -> dict[int, Future[bytes]]:
        """The digest of each leaf, by its number, when it was read and taken; leaves of `sooner` come first."""
        numbers = range(-(-path.stat().st_size // LEAF_BYTES))
        ordered = dict.fromkeys([*(number for number in sooner if number in numbers), *numbers])
        return {number: self._pool.submit(self._leaf, path, number, take) for number in ordered}

    def _leaf(self, path: Path, number: int, take: Take) -> bytes:
        buffer = self._buffers.get()
        try:
            with path.open("rb", buffering=0) as stream, memoryview(buffer) as whole:
                stream.seek(number * LEAF_BYTES)
                size = 0
                while size < LEAF_BYTES and (more := stream.readinto(whole[size:])):
                    size += more
                take(number * LEAF_BYTES, whole[:size])
                return hashlib.sha256(whole[:size]).digest()
        finally:
            self._buffers.put(buffer)

    def digest(self, path: Path) -> str:
        """Of a whole file."""
        leaves = self.read(path, lambda offset, content: None)
        return digest_of_read(leaves)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def digest_of_read(leaves: dict[int, Future[bytes]]) -> str:
    """Waits until all are read. OSError where one could not be."""
    return digest_of_leaves(leaves[number].result() for number in sorted(leaves))
