"""Writing safetensors files at the disk's speed: straight from the tensors' memory, hashed on the way.

The format (safetensors' README, "Format"): a JSON header's length in 8 bytes, little-endian, the header, all tensors.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtrain.train.leaves import LeafHasher

CHUNK_BYTES = 16 * 2**20
"""Written at a time: large enough that Python's own time does not count, small enough to hash beside."""

BEHIND_BYTES = 8 * CHUNK_BYTES
"""How far hashing may lag behind writing: a device's tensors that were not copied are on the host for so long."""
HASHING_THREADS = 2
"""Beside training, which needs the cores: together they hash faster than a usual disk writes."""

DIRECT_FROM_BYTES = 4 * CHUNK_BYTES
"""Smaller files go through the page cache."""
DIRECT_BLOCKS = 3
"""Memory for as many chunks: one that is filled, one that is written, one that waits."""
ALIGNED_BYTES = 4096
"""What O_DIRECT asks of sizes and addresses, on every device of today."""

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_OF_NAME = {name: dtype for dtype, name in _DTYPES.items()}


@dataclass(frozen=True)
class Content:
    """What a file will hold."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def is_on_device(self) -> bool:
        """Then each chunk is copied to the host on its way, and only so many may wait there."""
        return any(tensor.device.type != "cpu" for tensor in self.tensors.values())

    @property
    def bytes(self) -> int:
        """Of all tensors, without the header."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True)
class Written:
    """As a manifest tells of a file."""

    bytes: int
    leaves_sha256: str
    """As `dtrain.train.leaves` makes it."""


def write(path: Path, content: Content) -> Written:
    """Write and fsync. OSError when the disk does not take it; what was written of the file is left for the caller."""
    # widest first, as safetensors does: every tensor is aligned to its own element
    ordered = sorted(content.tensors.items(), key=lambda item: -item[1].element_size())
    size = 0
    with ThreadPoolExecutor(HASHING_THREADS, "sha256") as beside, closing(_sink(path, content.bytes)) as sink:
        hasher = LeafHasher(beside)  # hashing and writing both let go of the interpreter
        for chunk in _chunks(_header(ordered, content.metadata), ordered):
            hasher.add(chunk)
            sink.write(chunk)
            size += len(chunk)
            if content.is_on_device:
                hasher.wait_until_behind(BEHIND_BYTES)
        sink.sync()
        return Written(size, hasher.digest())


def _sink(path: Path, size: int) -> Buffered | Direct:
    if size >= DIRECT_FROM_BYTES and hasattr(os, "O_DIRECT"):
        try:
            return Direct(path)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that cannot (tmpfs, some network ones)
                raise
    return Buffered(path)


class Buffered:
    """Through the page cache."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def write(self, chunk: memoryview) -> None:
        _write_all(self._handle, chunk)

    def sync(self) -> None:
        os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)


class Direct:
    """Past the page cache (open(2), O_DIRECT): nothing is copied into memory that training could use, and the disk
    works from the first chunk on instead of at the fsync. One block is written while the next one is filled."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o644)
        self._blocks = deque(mmap.mmap(-1, CHUNK_BYTES) for _ in range(DIRECT_BLOCKS))
        self._filled = 0
        self._size = 0
        self._writer = ThreadPoolExecutor(1, "disk")
        self._under_way: deque[Future[None]] = deque()

    def write(self, chunk: memoryview) -> None:
        while chunk:
            part = chunk[: CHUNK_BYTES - self._filled]
            self._blocks[0][self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            if self._filled == CHUNK_BYTES:
                self._send(CHUNK_BYTES)
            chunk = chunk[len(part) :]

    def _send(self, size: int) -> None:
        """`size`: a multiple of what the device writes at once."""
        self._under_way.append(self._writer.submit(self._put, memoryview(self._blocks[0])[:size]))
        self._size += self._filled
        self._filled = 0
        self._blocks.rotate(-1)
        if len(self._under_way) == DIRECT_BLOCKS:
            self._under_way.popleft().result()

    def _put(self, block: memoryview) -> None:
        """Through the page cache from where the file system does not take it otherwise: it asks for other sizes than we
        write, or a disk that is nearly full took half a block."""
        while block:
            try:
                block = block[os.write(self._handle, block) :]
            except OSError as error:
                flags = fcntl.fcntl(self._handle, fcntl.F_GETFL)
                if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                    raise
                fcntl.fcntl(self._handle, fcntl.F_SETFL, flags & ~os.O_DIRECT)

    def sync(self) -> None:
        if self._filled:
            self._send(-(-self._filled // ALIGNED_BYTES) * ALIGNED_BYTES)
        while self._under_way:
            self._under_way.popleft().result()
        os.ftruncate(self._handle, self._size)
        os.fsync(self._handle)

    def close(self) -> None:
        self._writer.shutdown()
        os.close(self._handle)


def _header(ordered: list[tuple[str, Tensor]], metadata: Mapping[str, str]) -> bytes:
    told: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name, tensor in ordered:
        told[name] = {
            "dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes],
        }  # fmt: skip
        at += tensor.nbytes
    text = json.dumps(told, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class Extent:
    """Where a file holds a tensor."""

    begin: int
    end: int
    """Bytes from the file's beginning."""
    dtype: torch.dtype
    shape: tuple[int, ...]


def extents(path: Path) -> dict[str, Extent]:
    """Of every tensor, by the file's header. ValueError, KeyError or TypeError for one that is no such file."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"a header of {length} bytes is longer than the file")
        told: dict[str, Any] = json.loads(stream.read(length))
    return {name: _extent(about, 8 + length) for name, about in told.items() if name != "__metadata__"}


def _extent(about: dict[str, Any], data_begins: int) -> Extent:
    begin, end = about["data_offsets"]
    return Extent(data_begins + begin, data_begins + end, _OF_NAME[about["dtype"]], tuple(about["shape"]))


def _chunks(header: bytes, ordered: list[tuple[str, Tensor]]) -> Iterator[memoryview]:
    yield memoryview(header)
    for _, tensor in ordered:
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        for start in range(0, flat.numel(), CHUNK_BYTES):
            yield memoryview(flat[start : start + CHUNK_BYTES].cpu().numpy())  # type: ignore[arg-type]


def _write_all(handle: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(handle, chunk) :]


class HostCopy:
    """Memory of this machine that a rank's state is copied into at each save; kept from one save to the next."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    @property
    def is_there(self) -> bool:
        """Whether the memory is taken already."""
        return bool(self._buffers)

    def of(self, content: Content) -> Content:
        """The content as it is now, whatever the optimizer does to it later. The last copy is overwritten."""
        copies = {name: self._filled(name, tensor) for name, tensor in content.tensors.items()}
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return Content(copies, content.metadata)

    def _filled(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
            self._buffers[name] = buffer
        return buffer.copy_(tensor.detach(), non_blocking=True)
