"""The model of a run: loaded or drawn at random, whole or sharded from the first byte, and tested before it trains."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from dtrain.config.schema import Config
from dtrain.errors import BadInput
from dtrain.planner.choice import Choice
from dtrain.train import adapters, attention, attention_choice, recompute, rope, tiled_mlp
from dtrain.train.attention import UNLIMITED, Sight
from dtrain.train.batch import flat_batch, padded_batch
from dtrain.train.loss import LossModel
from dtrain.train.sequence_parallel import SequenceShard, refuse_positions_by_length

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Layout = Literal["flat", "padded"]
"""How a micro-batch lies in memory: all rows behind each other, or one row of tokens each, filled up."""


@contextmanager
def sharded_from_the_start(deepspeed_config: dict[str, Any], stage: int) -> Iterator[None]:
    """At stage 3, what transformers constructs inside is split over the ranks at once, never whole on any of them."""
    if stage != 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    alive = HfDeepSpeedConfig(deepspeed_config)  # transformers holds it weakly: it acts as long as this name lives
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del alive


def load_model(
    config: Config,
    choice: Choice,
    source: Path | str,
    tokenizer_size: int,
    back_end: str,
    deepspeed_config: dict[str, Any],
) -> Any:
    """transformers' causal language model on the CPU (or sharded), in the run's precision, checkpointing switched on.

    `source`: folder or hub name. `tokenizer_size`: the embedding grows to it where it is smaller.
    """
    import transformers

    sight = attention_choice.sight_of(config)
    attention.register(sight)
    auto = model_class(config.model_type)
    described = read_config(config, source)
    rope.refuse_mixed_rows(described, choice.sequence_len, config.sample_packing or choice.micro_batch_size > 1)
    if choice.sequence_parallel_size > 1:
        refuse_positions_by_length(described.get_text_config().to_dict(), choice.sequence_parallel_size)
    told: dict[str, Any] = {
        "dtype": DTYPES[choice.precision],
        "attn_implementation": implementation(described, back_end, sight),
        "trust_remote_code": config.trust_remote_code,
    }
    with sharded_from_the_start(deepspeed_config, choice.zero_stage):
        if config.reinit_weights:
            model = transformers.AutoModelForCausalLM.from_config(described, **told)
            draw_weights(model, config.seed)
        else:
            quantized = adapters.quantization(config, DTYPES[choice.precision])
            if quantized is not None:
                told["quantization_config"] = quantized
            model = auto.from_pretrained(source, config=described, revision=config.revision_of_model, **told)
    if tokenizer_size > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(tokenizer_size, mean_resizing=choice.zero_stage != 3)
    if choice.gradient_checkpointing != "none":
        said = config.gradient_checkpointing_kwargs.use_reentrant if config.gradient_checkpointing_kwargs else None
        recompute.enable(model, choice.gradient_checkpointing, said, config.lora_r if config.adapter else None)
    rope.forget_rows(model)
    if config.tiled_mlp:
        tiled_mlp.tile(model, tiles_of(described, choice) if choice.zero_stage == 3 else None)
    model.config.use_cache = False
    if config.adapter is not None:
        adapters.add(model, config, checkpointed=choice.gradient_checkpointing != "none")
    return model


def tiles_of(described: Any, choice: Choice) -> int:
    """Tiles of a rank's fullest micro-batch, each of about as many tokens as the hidden size."""
    tokens = choice.micro_batch_size * -(-choice.sequence_len // choice.sequence_parallel_size)
    return -(-tokens // int(described.get_text_config().hidden_size))


def read_config(config: Config, source: Path | str) -> Any:
    """transformers' config of the model, its rotation scaled as the run's config says."""
    import transformers

    described = transformers.AutoConfig.from_pretrained(
        source, revision=config.revision_of_model, trust_remote_code=config.trust_remote_code
    )
    if config.rope_scaling is not None:
        rope.scale(described, config.rope_scaling)
    return described


def implementation(described: Any, back_end: str, sight: Sight = UNLIMITED) -> str:
    """transformers' name of the attention: ours where the model lets it be replaced, else the best of its own."""
    import transformers

    known = transformers.AutoModelForCausalLM._model_mapping.get(type(described), None)
    if known is None or _replaceable(known):  # remote code: the self-test will tell
        return attention.TRANSFORMERS_NAMES[back_end]
    if sight != UNLIMITED:
        raise BadInput(
            f"{known.__name__} computes attention itself",
            key="attention_pattern" if sight.pattern else "segment_memory", fix="leave the key out",
        )  # fmt: skip
    return "sdpa" if getattr(known, "_supports_sdpa", False) and back_end != "eager" else "eager"


def model_class(name: str | None) -> Any:
    """`model_type` as Axolotl means it: a class of transformers."""
    import transformers

    if name is None:
        return transformers.AutoModelForCausalLM
    found = getattr(transformers, name, None)
    if found is None or not hasattr(found, "from_pretrained"):
        raise BadInput(
            "transformers has no such class",
            key="model_type",
            value=name,
            fix="remove the key, or name a …ForCausalLM class",
        )
    return found


def draw_weights(model: Any, seed: int) -> None:
    """Draw all weights again by the model's own rules, the same on any number of ranks and at any ZeRO stage.

    At stage 3 rank 0 draws each module's parameters while they are gathered, and the others take them over.
    """
    import deepspeed

    torch.manual_seed(seed)
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        for tensor in (*own, *module.buffers(recurse=False)):
            tensor._is_hf_initialized = False
        sharded = [parameter for parameter in own if hasattr(parameter, "ds_id")]
        with torch.no_grad(), deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if sharded else None):
            model._init_weights(module)
    model.tie_weights()


def decide_layout(
    run: LossModel, forward: nn.Module, config: Config, device: torch.device, dtype: torch.dtype,
    shard: SequenceShard | None = None,
) -> Layout:  # fmt: skip
    """Flat where the self-test shows that documents stay apart (nearly all models), else padded, and then not packed.

    Raises BadInput where rows are to be packed and would see each other, where a row over several ranks does not give
    what it gives on one, or where the head is not understood.
    """
    allowed = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}[dtype]
    name = type(run.model).__name__
    flat = self_test(run, forward, "flat", device, shard) if _replaceable(type(run.model)) else math.inf
    if flat <= allowed and leak(run, forward, device, shard) <= LEAK:
        return "flat"
    if shard is not None:
        raise BadInput(
            f"two documents in a row over {shard.size} ranks give another loss than each alone on one: {name} does "
            "more between tokens than the attention that can be shared out",
            key="sequence_parallel_size", value=shard.size, fix="set `sequence_parallel_size: 1`",
        )  # fmt: skip
    if config.sample_packing:
        raise BadInput(
            f"in the attention of {name} packed rows would see each other (the self-test of two documents in one row "
            f"{'failed' if math.isfinite(flat) else 'cannot run on it'})",
            key="sample_packing", value=True, fix="set `sample_packing: false`",
        )  # fmt: skip
    padded = self_test(run, forward, "padded", device)
    if padded <= allowed:
        return "padded"
    raise BadInput(
        f"the self-test failed: {name} gives two documents side by side another loss than each alone (by {padded:.2%})",
        key="attention", fix="set `attention: eager`, and report the model",
    )  # fmt: skip


def _replaceable(model: Any) -> bool:
    """May the attention of this class be exchanged for ours?"""
    return bool(getattr(model, "_supports_attention_backend", False))


class _TwoDocuments:
    """Rows of the self-test: two short documents of real token ids, all of them trained, or only the second."""

    def __init__(self, vocab_size: int, first: int = 0, trained: int = 2) -> None:
        self.lengths = np.array([11, 19], dtype=np.int32)
        draws = (np.random.default_rng(seed) for seed in (first, 99))
        self._ids = [
            draw.integers(0, vocab_size, size=length).astype(np.int32)
            for draw, length in zip(draws, self.lengths, strict=True)
        ]
        self._trained = range(2 - trained, 2)

    def ids(self, row: int) -> Any:
        return self._ids[row]

    def labels(self, row: int) -> Any:
        return self._ids[row] if row in self._trained else np.full_like(self._ids[row], -100)

    def __len__(self) -> int:
        return 2


def self_test(
    run: LossModel, forward: nn.Module, layout: Layout, device: torch.device, shard: SequenceShard | None = None
) -> float:
    """How far (relative) the loss of two documents in one micro-batch is from what the model itself gives each alone.

    Sees attention that leaks between documents, a wrong position, and a head that shapes its logits differently; with
    `shard`, also what goes wrong between the ranks of a row: each computes the documents alone by itself.
    `forward` is what is called (the engine), so that ZeRO-3 gathers. NaN comes back as infinity.
    """
    rows: Any = _TwoDocuments(run.model.config.get_text_config().vocab_size)
    if layout == "flat":
        batch = flat_batch(rows, [(0, 1)], device, shard=shard)
    else:
        batch = padded_batch(rows, [(0,), (1,)], device, filler_id=0)
    with adapters.evaluating(forward):
        loss = forward(batch)
        together = (loss if shard is None else shard.total(loss)).item()
        alone = 0.0
        for row in (0, 1):
            ids = torch.from_numpy(rows.ids(row).astype(np.int64)).to(device)[None]
            logits = run.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            alone += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    return _off(together, alone)


LEAK = 2e-5
"""Least change that tells of a leak: kept apart, documents change nothing in each other, in any precision; where they
see each other, losses of small random models moved by 4e-4 to 8e-3, in bf16 too."""


def leak(run: LossModel, forward: nn.Module, device: torch.device, shard: SequenceShard | None = None) -> float:
    """How far (relative) a document's loss moves when the tokens of the document before it in the row are others."""
    vocab_size, losses = run.model.config.get_text_config().vocab_size, []
    with adapters.evaluating(forward):
        for first in (0, 1):
            rows: Any = _TwoDocuments(vocab_size, first, trained=1)
            loss = forward(flat_batch(rows, [(0, 1)], device, shard=shard))
            losses.append((loss if shard is None else shard.total(loss)).item())
    return _off(*losses)


def _off(one: float, other: float) -> float:
    """Relative difference; infinite where one is no number."""
    off = abs(one - other) / max(abs(other), 1e-9)
    return off if math.isfinite(off) else math.inf
