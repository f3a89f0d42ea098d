"""A checkpoint of two ranks, some hundred MB: written by a first call, exported by a second, which then merges an
adapter into what it exported, and tells its memory.

python -m tests.train.streaming FOLDER SHARD_MIB
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from dtrain.config.schema import Config
from dtrain.train import state_files, tensor_file
from dtrain.train.export_checkpoint import Source, export_checkpoint
from dtrain.train.merge import merge
from dtrain.train.partitions import Partition, Piece
from tests.e2e.materials import write_tokenizer

RANKS = 2
MIB = 2**20


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def shapes(described: LlamaConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: one.shape for name, one in LlamaForCausalLM(described).named_parameters()}


def write_checkpoint(folder: Path, sizes: dict[str, torch.Size]) -> None:
    """As ZeRO-1 and 2 cut it: all parameters end to end, in equal parts. Every element tells where it is from."""
    share = -(-sum(size.numel() for size in sizes.values()) // RANKS)
    for rank in range(RANKS):
        pieces, begin = [], 0
        for name, size in sizes.items():
            first, last = max(begin, rank * share), min(begin + size.numel(), (rank + 1) * share)
            if first < last:
                pieces.append(Piece(name, first - begin, first - rank * share, last - first))
            begin += size.numel()
        master = ((torch.arange(share) + rank * share) % 65_521).float() / 2**20
        content = state_files.content_of(rank, [Partition(master, master, {}, tuple(pieces))], False, {"scaler": {}})
        tensor_file.write(state_files.state_file(folder, rank), content)


def write_adapter(base: Path, folder: Path, described: LlamaConfig) -> None:
    """One that changes nothing: its B is zero, as at the beginning."""
    LoraConfig(r=2, target_modules=["down_proj"], base_model_name_or_path=str(base)).save_pretrained(folder)
    tensors = {}
    for layer in range(described.num_hidden_layers):
        name = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(2, described.intermediate_size)
        tensors[f"{name}.lora_B.weight"] = torch.zeros(described.hidden_size, 2)
    save_file(tensors, folder / "adapter_model.safetensors")
    write_tokenizer(folder, None)


def main(folder: Path, shard_mib: int) -> None:
    described = LlamaConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=8, num_attention_heads=8, vocab_size=8192,
        architectures=["LlamaForCausalLM"], tie_word_embeddings=False,
    )  # fmt: skip
    described.save_pretrained(folder)
    write_tokenizer(folder, None)
    sizes = shapes(described)
    if not (folder / "step-1").exists():
        (folder / "step-1").mkdir()
        write_checkpoint(folder / "step-1", sizes)
        return
    config = Config.model_validate({"base_model": str(folder), "datasets": [{"path": "none"}], "segment_memory": 64})
    before = peak_mib()
    export_checkpoint(Source(folder / "step-1", config, "fp32", folder, (2,)), folder / "out", shard_mib * MIB)
    model_mib = 4 * sum(size.numel() for size in sizes.values()) / MIB
    largest_mib = 4 * max(size.numel() for size in sizes.values()) / MIB
    told = {"model_mib": model_mib, "largest_mib": largest_mib, "grown_mib": peak_mib() - before}
    write_adapter(folder / "out", folder / "adapter", described)
    change = merge(folder / "adapter", folder / "merged", shard_mib * MIB)
    print(json.dumps(told | {"merged_change": change, "merged_grown_mib": peak_mib() - before}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
