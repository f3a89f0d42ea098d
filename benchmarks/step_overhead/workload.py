"""What every contender trains: one small Llama from a config, and the same rows of a log-normal mix of lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dtrain.data.rows import NOT_TRAINED, TokenRows
from dtrain.data.schedule import make_order

PAD_ID = 0
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.1
MAX_GRAD_NORM = 1.0
LOGGING_STEPS = 10
"""TRL's default, given to dtrain as well."""
OPTIMIZER = "adamw_torch_fused"
"""TRL's default, given to all: on a CPU torch's plain AdamW takes several times as long."""


class Ticking(Protocol):
    def tick(self) -> None:
        """To be called after each optimizer step."""


StartClock = Callable[[int], Ticking]
"""Takes the steps of an epoch."""


@dataclass(frozen=True)
class Workload:
    """A trial is one epoch of these rows, so that every contender trains the same tokens in a trial.

    A step takes `rows_per_step` rows or, packed, `windows_per_step` windows, which hold about as many tokens.
    """

    layers: int = 6
    hidden: int = 256
    intermediate: int = 688
    heads: int = 4
    key_value_heads: int = 2
    vocabulary: int = 8192
    window: int = 512
    rows: int = 64
    rows_per_step: int = 8
    windows_per_step: int = 2
    median_tokens: float = 96.0
    spread: float = 0.8
    """Standard deviation of the logarithm of a row's length (instruction data: 0.6 to 1.1)."""
    prompt_share: tuple[float, float] = (0.2, 0.6)
    """The part of a row that is a prompt and not trained, drawn evenly between these."""
    seed: int = 4
    """With these sizes the rows fill 16 windows to 98 %, which two ranks share evenly."""

    @cached_property
    def token_rows(self) -> TokenRows:
        return _draw(self)

    @cached_property
    def windows(self) -> tuple[tuple[int, ...], ...]:
        """The rows packed by best fit into windows, in a fixed random order."""
        order = make_order(self.token_rows.lengths.astype(np.int64), self.window, packing=True, seed=self.seed)
        epoch = order.epoch(0)
        return tuple(epoch.slot(index) for index in range(order.slots))

    @cached_property
    def random_batches(self) -> tuple[tuple[int, ...], ...]:
        return _chunks(self._random.permutation(self.rows).tolist(), self.rows_per_step)

    @cached_property
    def sorted_batches(self) -> tuple[tuple[int, ...], ...]:
        """Rows of like length together, the batches in a random order."""
        batches = _chunks(np.argsort(self.token_rows.lengths, kind="stable").tolist(), self.rows_per_step)
        return tuple(batches[index] for index in self._random.permutation(len(batches)))

    @property
    def real_tokens(self) -> int:
        return int(self.token_rows.lengths.sum())

    @property
    def trained_tokens(self) -> int:
        return int(self.token_rows.trained.sum())

    @property
    def _random(self) -> np.random.Generator:
        return np.random.default_rng(self.seed + 1)

    def llama_config(self) -> Any:
        from transformers import LlamaConfig

        return LlamaConfig(
            hidden_size=self.hidden, intermediate_size=self.intermediate, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, num_key_value_heads=self.key_value_heads, vocab_size=self.vocabulary,
            max_position_embeddings=self.window, tie_word_embeddings=False, pad_token_id=PAD_ID,
            architectures=["LlamaForCausalLM"],
        )  # fmt: skip

    def model(self) -> Any:
        """Random weights, as transformers draws them, with its own sdpa attention."""
        import torch
        from transformers import AutoModelForCausalLM

        torch.manual_seed(self.seed)
        model = AutoModelForCausalLM.from_config(self.llama_config(), dtype=torch.float32, attn_implementation="sdpa")
        model.config.use_cache = False
        return model

    def write_model_folder(self, folder: Path) -> None:
        self.llama_config().save_pretrained(folder)


def _draw(workload: Workload) -> TokenRows:
    random = np.random.default_rng(workload.seed)
    drawn = np.exp(random.normal(np.log(workload.median_tokens), workload.spread, size=workload.rows))
    lengths = np.clip(drawn.round(), 8, workload.window).astype(np.int32)
    prompts = (lengths * random.uniform(*workload.prompt_share, size=workload.rows)).astype(np.int32)
    ids = random.integers(1, workload.vocabulary, size=int(lengths.sum()), dtype=np.int32)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
    within = np.arange(len(ids)) - np.repeat(starts[:-1], lengths)
    labels = np.where(within < np.repeat(prompts, lengths), NOT_TRAINED, ids).astype(np.int32)
    trained = lengths - np.maximum(prompts, 1)
    return TokenRows(lengths, trained, ids, labels, starts)


def _chunks(rows: Sequence[int], size: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(rows[first : first + size]) for first in range(0, len(rows), size))
