"""Which rows and layers may be split over ranks: what cannot work is refused before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dtrain.config.origins import Loaded
from dtrain.config.tree import error_at
from dtrain.errors import BadInput
from dtrain.models.facts import ModelFacts
from dtrain.planner.choice import Precision

OWN_ATTENTION = frozenset({"bloom", "falcon", "gptj", "mpt", "stablelm"})
"""Families whose attention transformers does not let one replace (`_supports_attention_backend`, 5.23)."""
LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
"""Rotary tables that transformers computes from the longest position at hand: of a rank's part, not of the row."""
SHARED_ATTENTION = ("auto", "flash_attention_3", "flash_attention_2", "varlen", "flex", "sdpa")
"""Back ends told of documents by lengths, not by a mask over a rank's own tokens."""
CUT_BY_NAME = frozenset(
    {"gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo", "qwen2", "qwen3", "smollm3"}
)
"""Families whose blocks have Llama's names of layers and nothing between them that needs all heads: what tensor
parallel is tested with (dtrain/train/tensor_parallel.py)."""
WHOLE_MATRICES = frozenset({"adafactor", "muon"})
"""Optimizers whose step depends on a whole matrix, not on each element alone."""


def parallel_errors(loaded: Loaded, facts: ModelFacts) -> list[BadInput]:
    """Everything about sequence and tensor parallel that this model cannot do."""
    errors, config = list(_heads(loaded, facts)), loaded.config
    if config.plan_as is not None:
        return errors
    if config.sequence_parallel_size > 1:
        errors += _sequence(loaded, facts)
    if config.tensor_parallel_size > 1:
        errors += [*_tensor(loaded, facts), *_beside_tensor(loaded)]
    return errors


def _heads(loaded: Loaded, facts: ModelFacts) -> Iterator[BadInput]:
    for key in ("sequence_parallel_size", "tensor_parallel_size"):
        size = getattr(loaded.config, key)
        if facts.heads % size:
            allowed = ", ".join(str(one) for one in range(1, facts.heads + 1) if facts.heads % one == 0)
            message = f"{facts.heads} attention heads cannot be divided by {size}"
            yield _at(loaded, key, message, size, "choose a divisor of the heads", allowed)


def _sequence(loaded: Loaded, facts: ModelFacts) -> Iterator[BadInput]:
    config = loaded.config
    key, size, alone = "sequence_parallel_size", config.sequence_parallel_size, "sequence_parallel_size: 1"
    if config.sequence_len < size:
        message = f"a window of {config.sequence_len} tokens has fewer than one for each of {size} ranks"
        yield _at(loaded, "sequence_len", message, config.sequence_len, alone)
    if config.attention not in SHARED_ATTENTION:
        message = f"sees each rank's own tokens only: with {key} {size} documents would not be kept apart"
        fix, allowed = f"attention: auto, or {alone}", ", ".join(SHARED_ATTENTION)
        yield _at(loaded, "attention", message, config.attention, fix, allowed)
    if facts.family in OWN_ATTENTION:
        yield _at(loaded, key, f"{facts.family} computes attention by itself, over a rank's own tokens", size, alone)
    scaling = config.rope_scaling
    if problem := rope_problem({"rope_scaling": {"type": scaling.type}} if scaling else facts.config):
        yield _at(loaded, key, problem, size, alone)


def _tensor(loaded: Loaded, facts: ModelFacts) -> Iterator[BadInput]:
    """What of the model cannot be cut into equal parts."""
    key, size, alone = "tensor_parallel_size", loaded.config.tensor_parallel_size, "tensor_parallel_size: 1"
    if facts.family not in CUT_BY_NAME:
        message = f"{facts.family} is not among the families whose layers can be cut"
        yield _at(
            loaded, key, message, size, f"{alone}, and zero_stage: 3 for its memory", ", ".join(sorted(CUT_BY_NAME))
        )
    elif facts.kv_heads % size:
        allowed = ", ".join(str(one) for one in range(1, facts.kv_heads + 1) if facts.kv_heads % one == 0)
        message = f"{facts.kv_heads} key and value heads cannot be divided by {size}"
        yield _at(loaded, key, message, size, "choose a divisor of them, or zero_stage: 3 without it", allowed)
    elif facts.intermediate_size % size:
        message = f"the MLP's width {facts.intermediate_size} cannot be divided by {size}"
        yield _at(loaded, key, message, size, alone)


def _beside_tensor(loaded: Loaded) -> Iterator[BadInput]:
    """Other keys that do not work with it."""
    config = loaded.config
    alone = "tensor_parallel_size: 1"
    if config.zero_stage == 3:
        message = "ZeRO stage 3 shards what tensor parallel has cut already"
        yield _at(loaded, "zero_stage", message, 3, f"zero_stage: 2, or {alone}", "0, 1, 2, auto")
    if config.sequence_parallel_size > 1:
        message = f"rows are cut by sequence_parallel_size {config.sequence_parallel_size}: one of the two at a time"
        yield _at(loaded, "tensor_parallel_size", message, config.tensor_parallel_size, alone)
    if config.adapter is not None:
        message = "adapters lie on whole layers, and tensor parallel cuts them"
        yield _at(loaded, "adapter", message, config.adapter, f"{alone}: with an adapter ZeRO is enough")
    if config.optimizer in WHOLE_MATRICES:
        message = f"{config.optimizer} steps by whole matrices, and a rank has parts of them"
        yield _at(loaded, "optimizer", message, config.optimizer, f"optimizer: adamw_torch, or {alone}")
    if config.tiled_mlp:
        message = "would sum over the group once for each tile"
        yield _at(loaded, "tiled_mlp", message, True, f"tiled_mlp: false, or {alone}")


def unsharded_in_16_bits(loaded: Loaded, precision: Precision) -> list[BadInput]:
    """DeepSpeed's 16-bit optimizer without ZeRO leaves others' parts out of the norm: 8 % too small, as measured."""
    config = loaded.config
    if config.tensor_parallel_size == 1 or config.zero_stage != 0 or precision not in ("bf16", "fp16"):
        return []
    message = f"the gradient norm would be wrong at stage 0 in {precision} with tensor_parallel_size"
    return [_at(loaded, "zero_stage", message, 0, "zero_stage: 1", "1, 2, auto")]


def rope_problem(model_config: Mapping[str, Any]) -> str | None:
    """Why a model's rotary positions cannot be shared out, by its config.json; None where they can."""
    told = sorted(rope_kinds(model_config) & LENGTH_DEPENDENT_ROPE)
    if not told:
        return None
    return f"this model scales its positions ({told[0]}) by the length at hand, and a rank has only a part of a row"


def rope_kinds(model_config: Mapping[str, Any]) -> set[str]:
    """How rotary positions are scaled: in one section, or one for each kind of layer (`rope_parameters`, transformers
    5)."""
    said = [model_config.get(name) for name in ("rope_scaling", "rope_parameters")]
    sections = [section for section in said if isinstance(section, Mapping)]
    inner = [value for section in sections for value in section.values() if isinstance(value, Mapping)]
    kinds = [section.get("rope_type") or section.get("type") for section in (*sections, *inner)]
    return {kind for kind in kinds if isinstance(kind, str)}


def _at(loaded: Loaded, key: str, message: str, value: object, fix: str, allowed: str | None = None) -> BadInput:
    return error_at(loaded.origin(key), key, message, value=value, fix=fix, allowed=allowed)
