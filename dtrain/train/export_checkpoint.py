"""A model folder from a checkpoint of any stage and world, on the CPU of any machine, one shard in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtrain.config.schema import Config
from dtrain.errors import RunFailed
from dtrain.files import write_json
from dtrain.train import adapters, tensor_file
from dtrain.train.export import verify
from dtrain.train.model import DTYPES, read_config
from dtrain.train.state_files import Stored, stored_in, whole_parameter

SHARD_BYTES = 2 * 2**30
"""Of a file of weights; a larger tensor has a file of its own."""
READ_AT_ONCE = 2**24
"""Elements compared at a time."""


@dataclass(frozen=True)
class Source:
    """What is exported."""

    checkpoint: Path
    config: Config
    precision: str
    tokenizer: Path
    stop_tokens: Sequence[int] = ()
    """What trained turns end in; generation stops there, whatever the base model said."""


def export_checkpoint(source: Source, out: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write config, weights and tokenizer into `out`. Full models are streamed and compared with the checkpoint tensor
    by tensor; adapters are small, and the whole model is loaded with them. RunFailed when `out` is not the same."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(source.tokenizer)
    model = _described(source, len(tokenizer))
    stored = stored_in(source.checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    if source.config.adapter is None and not source.config.trust_remote_code:
        _write_config(model, source.precision, out)
        _stream(model, stored, out, shard_bytes)
    else:
        weights = {name: _of(stored, name, parameter) for name, parameter in _trained(model)}
        model.save_pretrained(out, state_dict=weights)
        verify(out, weights, type(model))
    tokenizer.save_pretrained(out)


def _described(source: Source, tokenizer_size: int) -> Any:
    """The model without any memory for its weights."""
    import transformers

    described = read_config(source.config, source.config.base_model)
    described.vocab_size = max(described.get_text_config().vocab_size, tokenizer_size)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            described, dtype=DTYPES[source.precision], trust_remote_code=source.config.trust_remote_code
        )
        if source.config.adapter is not None:
            adapters.add(model, source.config, checkpointed=False)
    if source.stop_tokens:
        model.generation_config.eos_token_id = list(source.stop_tokens)
    return model


def _trained(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Tied weights come once."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _of(stored: Sequence[Stored], name: str, parameter: Tensor) -> Tensor:
    return whole_parameter(stored, name, parameter.shape).to(parameter.dtype)


def _write_config(model: Any, precision: str, out: Path) -> None:
    model.config.architectures = [type(model).__name__]
    model.config.dtype = str(DTYPES[precision]).removeprefix("torch.")
    model.config.save_pretrained(out)
    if model.can_generate():
        model.generation_config.save_pretrained(out)


# --- weights ------------------------------------------------------------------------------------------------------


def _stream(model: Any, stored: Sequence[Stored], out: Path, shard_bytes: int) -> None:
    shards = []
    for number, tensors in enumerate(_shards(model, stored, shard_bytes), start=1):
        file = out / f"shard-{number}.safetensors"
        tensor_file.write(file, tensor_file.Content(tensors, {"format": "pt"}))
        _compare(file, tensors)
        shards.append((file, {name: tensor.nbytes for name, tensor in tensors.items()}))
        del tensors
    _name(shards, out)
    _refuse_other_names(model, out)


def _shards(model: Any, stored: Sequence[Stored], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Tensors under their names on disk, as many as fit into a shard."""
    from transformers.core_model_loading import revert_weight_conversion  # fused experts, and the like, taken apart

    shard: dict[str, Tensor] = {}
    for name, parameter in _trained(model):
        ready = revert_weight_conversion(model, {name: _of(stored, name, parameter)})
        size = sum(tensor.nbytes for tensor in (*shard.values(), *ready.values()))
        if shard and size > shard_bytes:
            yield shard
            shard = {}
        shard |= {name: tensor.contiguous() for name, tensor in ready.items()}
    yield shard


def _compare(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """What the disk has, bit for bit."""
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


def _refuse_other_names(model: Any, out: Path) -> None:
    """Have transformers load the folder as a stranger would, without memory for the weights."""
    _, told = type(model).from_pretrained(out, dtype="auto", device_map="meta", output_loading_info=True)
    wrong = {kind: sorted(map(str, told[kind])) for kind in WRONG_KEYS if told.get(kind)}
    if wrong:
        raise RunFailed(
            f"the exported model does not load: {wrong}", file=str(out), fix="the checkpoint is untouched; report this"
        )


WRONG_KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys")
