"""Weights into a model folder's files, one shard in memory at a time, each read back as it was written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dtrain.errors import RunFailed
from dtrain.files import write_json
from dtrain.train import tensor_file

SHARD_BYTES = 2 * 2**30
"""Of a file of weights; a larger tensor has a file of its own."""
READ_AT_ONCE = 2**24
"""Elements compared at a time."""


def write(tensors: Iterable[Mapping[str, Tensor]], out: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write groups of tensors that belong together into `out`, under Hugging Face's names. RunFailed where a file does
    not read back bit for bit."""
    shards = []
    for number, shard in enumerate(_filled(tensors, shard_bytes), start=1):
        file = out / f"shard-{number}.safetensors"
        tensor_file.write(file, tensor_file.Content(shard, {"format": "pt"}))
        compare(file, shard)
        shards.append((file, {name: tensor.nbytes for name, tensor in shard.items()}))
        del shard
    _name(shards, out)


def _filled(tensors: Iterable[Mapping[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    """As many as fit into a shard."""
    shard: dict[str, Tensor] = {}
    for ready in tensors:
        size = sum(tensor.nbytes for tensor in (*shard.values(), *ready.values()))
        if shard and size > shard_bytes:
            yield shard
            shard = {}
        shard |= {name: tensor.contiguous() for name, tensor in ready.items()}
    yield shard


def compare(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """What the disk has, bit for bit. RunFailed where it is something else."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as handle:
        for name, tensor in tensors.items():
            found = handle.get_tensor(name).reshape(-1)
            flat = tensor.reshape(-1)
            for at in range(0, flat.numel(), READ_AT_ONCE):
                if not torch.equal(found[at : at + READ_AT_ONCE], flat[at : at + READ_AT_ONCE]):
                    raise RunFailed(f"{name} does not read back as it was written", file=str(file))


def _name(shards: Sequence[tuple[Path, Mapping[str, int]]], out: Path) -> None:
    """Hugging Face's names: one file, or numbered ones and an index."""
    if len(shards) == 1:
        shards[0][0].replace(out / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, (file, sizes) in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file.replace(out / name)
        weight_map |= dict.fromkeys(sizes, name)
    total = sum(size for _, sizes in shards for size in sizes.values())
    write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
