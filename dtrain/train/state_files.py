"""The files of a checkpoint's training state: one safetensors file a rank, readable by any other layout.

    rank-R.safetensors     tensors   I.master, I.exp_avg, …     of partition I
                           metadata  layout: JSON {pieces, scalars} of each partition

Nothing in them can run: safetensors and JSON only.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtrain.errors import RunFailed
from dtrain.train import blockwise
from dtrain.train.partitions import Partition, Piece
from dtrain.train.tensor_file import Content
from dtrain.train.tensor_parallel import parts_in

MASTER = "master"


def state_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.safetensors"


def content_of(model_copy: int, mine: Sequence[Partition], whole_in_each_copy: bool, extra: dict[str, Any]) -> Content:
    """What this rank's file is to hold: the live tensors, not copied. Without ZeRO each copy of the model holds
    everything, and the first one's files have it."""
    if whole_in_each_copy and model_copy != 0:
        mine = ()
    tensors: dict[str, Tensor] = {}
    layout = []
    for index, partition in enumerate(mine):
        scalars = {}
        tensors[f"{index}.{MASTER}"] = partition.master.detach()
        for kind, value in partition.states.items():
            if torch.is_tensor(value) and value.dim() > 0:
                tensors[f"{index}.{kind}"] = value.detach().reshape(-1)
            else:
                scalars[kind] = _plain(value)
        layout.append({"pieces": [asdict(piece) for piece in partition.pieces], "scalars": scalars})
    return Content(tensors, {"layout": json.dumps(layout), "extra": json.dumps(extra)})


def _plain(value: Any) -> dict[str, Any]:
    """A number with what is needed to make it again: torch's Adam counts its steps in a 0-d fp32 tensor."""
    if torch.is_tensor(value):
        return {"tensor": value.item(), "dtype": str(value.dtype).removeprefix("torch."), "device": value.device.type}
    return {"value": value}


def _rebuilt(told: dict[str, Any], device: torch.device) -> Any:
    if "value" in told:
        return told["value"]
    place, dtype = torch.device("cpu") if told["device"] == "cpu" else device, getattr(torch, told["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{told['dtype']} is no dtype")
    return torch.tensor(told["tensor"], dtype=dtype, device=place)


@dataclass(frozen=True)
class Stored:
    """One partition as a file has it."""

    file: Path
    index: int
    pieces: tuple[Piece, ...]
    scalars: dict[str, Any]
    kinds: frozenset[str]
    numel: int
    """Of the partition, padding included."""

    @property
    def elementwise(self) -> Iterator[str]:
        """Kinds with one number per element: all but the maxima and code books of 8-bit states."""
        return (kind for kind in self.kinds if not kind.startswith(("absmax", "qmap")))


def stored_in(folder: Path) -> list[Stored]:
    """Every partition of every rank's file."""
    with told_as_damage(folder):
        return [stored for file in sorted(folder.glob("rank-*.safetensors")) for stored in partitions_in(file)]


@contextmanager
def told_as_damage(folder: Path) -> Iterator[None]:
    """RunFailed for whatever else reading a file that we did not write like this may raise."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise RunFailed(
            f"this checkpoint cannot be read ({type(error).__name__}: {error})", file=str(folder),
            fix="remove this folder: the checkpoint before it is taken then",
        ) from error  # fmt: skip


def partitions_in(file: Path) -> Iterator[Stored]:
    """As its layout tells; whatever a file that we did not write may raise."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as handle:
        layout = json.loads(handle.metadata()["layout"])
        kinds = defaultdict(set)
        for key in handle.keys():  # noqa: SIM118 - safe_open's handle is no mapping
            index, _, kind = key.partition(".")
            kinds[int(index)].add(kind)
        for index, told in enumerate(layout):
            numel = handle.get_slice(f"{index}.{MASTER}").get_shape()[0]
            pieces = tuple(_piece(piece, numel) for piece in told["pieces"])
            yield Stored(file, index, pieces, told["scalars"], frozenset(kinds[index]), numel)


def _piece(told: dict[str, Any], numel: int) -> Piece:
    """ValueError for one that does not lie within its partition."""
    piece = Piece(**told)
    numbers = (piece.start, piece.offset, piece.length)
    if type(piece.name) is not str or any(type(one) is not int or one < 0 for one in numbers):
        raise ValueError(f"{told} is no piece")
    if piece.offset + piece.length > numel:
        raise ValueError(f"{told} ends beyond the {numel} elements of its partition")
    return piece


def extra_of(folder: Path, rank: int) -> dict[str, Any]:
    """What `content_of` was given beside the partitions, of the same rank or of rank 0."""
    from safetensors import safe_open

    file = state_file(folder, rank)
    with told_as_damage(folder), safe_open(file if file.exists() else state_file(folder, 0), framework="pt") as handle:
        return dict(json.loads(handle.metadata()["extra"]))


def read(folder: Path, mine: Sequence[Partition]) -> None:
    """Fill this rank's partitions, in place, from a checkpoint of any layout.

    The same cut is copied whole, so it is exact for every kind of state. Another cut is put together from pieces, which
    is exact but for 8-bit states: their blocks are made anew.
    """
    stored = stored_in(folder)
    same = {(one.pieces, one.numel): one for one in stored}
    with told_as_damage(folder):
        for partition in mine:
            twin = same.get((partition.pieces, partition.master.numel()))
            if twin is not None:
                _fill_whole(partition, twin)
            else:
                _fill_by_pieces(partition, stored, folder)


def _fill_whole(partition: Partition, stored: Stored) -> None:
    from safetensors import safe_open

    with safe_open(stored.file, framework="pt") as handle:
        for kind in stored.kinds:
            _put(partition, kind, handle.get_tensor(f"{stored.index}.{kind}"))
    put_scalars(partition, stored)


def _put(partition: Partition, kind: str, tensor: Tensor) -> None:
    if kind == MASTER:
        partition.master.copy_(tensor)
        return
    shape = partition.key.shape if tensor.numel() == partition.master.numel() else tensor.shape
    # a copy: a tensor that is a mapped file would end the run (SIGBUS) if that file went away
    partition.new_state(kind, shape, tensor.dtype).copy_(tensor.reshape(shape))


def put_scalars(partition: Partition, stored: Stored) -> None:
    """States that are one number each, and lie in the layout."""
    for kind, told in stored.scalars.items():
        partition.states[kind] = _rebuilt(told, partition.master.device)


def _fill_by_pieces(partition: Partition, stored: Sequence[Stored], folder: Path) -> None:
    """Copy every overlap between what this partition holds and what the files hold."""
    from safetensors import safe_open

    by_name = _by_name(stored)
    filled: dict[str, Tensor] = {}
    books: dict[str, Tensor] = {}
    for wanted in partition.pieces:
        missing = wanted.length
        for one, had in by_name[wanted.name]:
            first, last = max(wanted.start, had.start), min(wanted.start + wanted.length, had.start + had.length)
            if first >= last:
                continue
            at = had.offset + first - had.start
            to = slice(wanted.offset + first - wanted.start, wanted.offset + last - wanted.start)
            with safe_open(one.file, framework="pt") as handle:
                for kind in one.elementwise:
                    elements, book = _elements(handle, one, kind, at, at + last - first)
                    target = filled.setdefault(kind, torch.zeros(partition.master.numel(), dtype=elements.dtype))
                    target[to] = elements
                    books |= {} if book is None else {kind: book}
            missing -= last - first
            if not partition.states.keys() >= one.scalars.keys():
                put_scalars(partition, one)
        if missing:
            raise RunFailed(
                f"the checkpoint lacks {missing} elements of {wanted.name}",
                file=str(folder),
            )
    for kind, tensor in filled.items():
        if kind in books and tensor.numel() >= blockwise.LEAST_NUMEL:
            tensor, maxima = blockwise.quantised(tensor, books[kind])
            _put(partition, kind.replace("state", "absmax"), maxima)
            _put(partition, kind.replace("state", "qmap"), books[kind])
        _put(partition, kind, tensor)


def _by_name(stored: Sequence[Stored]) -> Mapping[str, Sequence[tuple[Stored, Piece]]]:
    """Where each parameter's elements are stored. What tensor parallel leaves whole is in several files: the first."""
    found: dict[str, dict[tuple[int, int], tuple[Stored, Piece]]] = defaultdict(dict)
    for one in stored:
        for piece in one.pieces:
            found[piece.name].setdefault((piece.start, piece.length), (one, piece))
    return defaultdict(list, {name: list(places.values()) for name, places in found.items()})


def _elements(handle: Any, one: Stored, kind: str, first: int, last: int) -> tuple[Tensor, Tensor | None]:
    """Elements of a flat state: as they are, or as fp32 with the code book they were kept with."""
    codes = handle.get_slice(f"{one.index}.{kind}")
    maxima = kind.replace("state", "absmax")
    if maxima == kind or maxima not in one.kinds:  # kept in 32 bits
        return codes[first:last], None
    block = first // blockwise.BLOCK
    begin, end = block * blockwise.BLOCK, -(-last // blockwise.BLOCK)
    book = handle.get_tensor(f"{one.index}.{kind.replace('state', 'qmap')}")
    numbers = blockwise.dequantised(codes[begin:last], handle.get_slice(f"{one.index}.{maxima}")[block:end], book)
    return numbers[first - begin :], book


def whole_parameter(stored: Sequence[Stored], name: str, shape: torch.Size) -> Tensor:
    """One parameter's master weights in its shape, also where tensor parallel had cut it."""
    cuts = parts_in(name, {piece.name for one in stored for piece in one.pieces})
    if not cuts:
        return whole_master(stored, name, shape.numel()).reshape(shape)
    sizes = list(shape)
    sizes[cuts[0].dim] //= cuts[0].size
    parts = [whole_master(stored, part.named(name), shape.numel() // part.size).reshape(sizes) for part in cuts]
    return torch.cat(parts, dim=cuts[0].dim)


def whole_master(stored: Sequence[Stored], name: str, numel: int) -> Tensor:
    """One parameter's master weights, flat fp32, put together from all ranks' files."""
    from safetensors import safe_open

    whole = torch.empty(numel)
    missing = numel
    for one, piece in _by_name(stored)[name]:
        with safe_open(one.file, framework="pt") as handle:
            source = handle.get_slice(f"{one.index}.{MASTER}")
            whole[piece.start : piece.start + piece.length] = source[piece.offset : piece.offset + piece.length]
        missing -= piece.length
    if missing:
        raise RunFailed(
            f"the checkpoint lacks {missing} elements of {name}", file=str(stored[0].file.parent) if stored else None
        )
    return whole
