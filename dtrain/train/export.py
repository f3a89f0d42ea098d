"""From the engine to a Hugging Face model folder, and the proof that what was written is what was trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dtrain.errors import RunFailed
from dtrain.files import sync_file, sync_folder
from dtrain.train import adapters, own_attention
from dtrain.train.attention import UNLIMITED, Sight
from dtrain.train.loss import LossModel
from dtrain.train.ranks import Ranks
from dtrain.train.tensor_parallel import part_of


def whole_weights(model: Any, is_first: bool, only_trained: bool = False) -> Iterator[tuple[str, Tensor | None]]:
    """Each entry of the model's state dict, whole on the CPU of rank 0; None on the others, who only help to gather.

    A collective at ZeRO-3 and with tensor parallel: every rank must walk it to its end.
    """
    import deepspeed

    seen: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen or (only_trained and not tensor.requires_grad):  # tied weights are written once
            continue
        seen[id(tensor)] = name
        sharded = [tensor] if hasattr(tensor, "ds_id") else []
        part = part_of(tensor)
        with deepspeed.zero.GatheredParameters(sharded), torch.no_grad():
            whole = tensor if part is None else part.gathered(tensor)
            yield name, whole.detach().cpu().clone() if is_first else None


def export(
    loss_model: LossModel, tokenizer: Any, folder: Path, ranks: Ranks, stop_tokens: Sequence[int] = (),
    sight: Sight = UNLIMITED,
) -> None:  # fmt: skip
    """Write config, weights and tokenizer into `folder`, and check them by a reload before any file is in its place.

    `stop_tokens`: what trained turns end in; generation stops there, whatever the base model said. `sight`: what the
    config let tokens look back at.
    """
    model = loss_model.model
    adapted = bool(getattr(model, "peft_config", None))  # then the base stays where it is
    gathered = whole_weights(model, ranks.is_first, only_trained=adapted)
    weights = {name: tensor for name, tensor in gathered if tensor is not None}
    if ranks.is_first:
        beside = folder / ".export.part"
        shutil.rmtree(beside, ignore_errors=True)
        model.config.use_cache = True
        if stop_tokens:
            model.generation_config.eos_token_id = list(stop_tokens)
        model.save_pretrained(beside, state_dict=weights, is_main_process=True)
        tokenizer.save_pretrained(beside)
        own_attention.mark(beside, sight)
        verify(beside, weights, type(model))
        for path in sorted(beside.iterdir()):
            sync_file(path)
            path.replace(folder / path.name)
        beside.rmdir()
        sync_folder(folder)
    ranks.wait()


def verify(folder: Path, weights: dict[str, Tensor], model_class: type[Any]) -> None:
    """Load the folder as a stranger would and compare every tensor, bit for bit, with what was trained."""
    if adapters.is_adapter(folder):
        adapters.compare(folder, weights)
        return
    loaded, told = model_class.from_pretrained(folder, dtype="auto", output_loading_info=True)
    found = loaded.state_dict()
    wrong = {kind: sorted(map(str, told[kind])) for kind in WRONG_KEYS if told.get(kind)}
    different = [name for name, tensor in weights.items() if name not in found or not torch.equal(found[name], tensor)]
    if wrong or different:
        raise RunFailed(
            f"the exported model does not reload as it was trained: {wrong or ''} {different[:5] or ''}",
            file=str(folder),
            fix="the checkpoints are untouched; `dtrain export` writes the model again",
        )


WRONG_KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys")
"""Of what transformers tells of loading a folder."""
