"""A model folder from a checkpoint of any stage and world, on the CPU of any machine, one shard in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtrain.config.schema import Config
from dtrain.errors import RunFailed
from dtrain.train import adapters, own_attention, shards
from dtrain.train.attention_choice import sight_of
from dtrain.train.export import WRONG_KEYS
from dtrain.train.model import DTYPES, read_config
from dtrain.train.state_files import Stored, stored_in, whole_parameter


@dataclass(frozen=True)
class Source:
    """What is exported."""

    checkpoint: Path
    config: Config
    precision: str
    tokenizer: Path
    stop_tokens: Sequence[int] = ()
    """What trained turns end in; generation stops there, whatever the base model said."""


def export_checkpoint(source: Source, out: Path, shard_bytes: int = shards.SHARD_BYTES) -> None:
    """Write config, weights and tokenizer into `out`, and compare what the disk has with the checkpoint, tensor by
    tensor. RunFailed when `out` is not the same."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(source.tokenizer)
    model = _described(source, len(tokenizer))
    stored = stored_in(source.checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    if source.config.adapter is None:
        _write_config(model, source.precision, out)
        shards.write(_tensors(model, stored), out, shard_bytes)
        _refuse_other_names(model, out)
    else:
        weights = {name: _of(stored, name, parameter) for name, parameter in _trained(model)}
        model.save_pretrained(out, state_dict=weights)
        adapters.compare(out, weights)
    own_attention.mark(out, sight_of(source.config))
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
    from transformers.dynamic_module_utils import custom_object_save

    model.config.architectures = [type(model).__name__]
    model.config.dtype = str(DTYPES[precision]).removeprefix("torch.")
    model.config.save_pretrained(out)
    if getattr(model, "_auto_class", None) is not None:  # code of its own, which the folder then carries
        custom_object_save(model, out, config=model.config)
    if model.can_generate():
        model.generation_config.save_pretrained(out)


# --- weights ------------------------------------------------------------------------------------------------------


def _tensors(model: Any, stored: Sequence[Stored]) -> Iterator[dict[str, Tensor]]:
    """Under their names on disk."""
    from transformers.core_model_loading import revert_weight_conversion  # fused experts, and the like, taken apart

    for name, parameter in _trained(model):
        yield revert_weight_conversion(model, {name: _of(stored, name, parameter)})


def _refuse_other_names(model: Any, out: Path) -> None:
    """Have transformers load the folder as a stranger would, without memory for the weights."""
    _, told = type(model).from_pretrained(out, dtype="auto", device_map="meta", output_loading_info=True)
    wrong = {kind: sorted(map(str, told[kind])) for kind in WRONG_KEYS if told.get(kind)}
    if wrong:
        raise RunFailed(
            f"the exported model does not load: {wrong}", file=str(out), fix="the checkpoint is untouched; report this"
        )
