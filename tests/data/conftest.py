"""Tiny tokenizers and files, built where they are needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dtrain.config.load import loads
from dtrain.config.schema import Config

TEXT = [
    "the quick brown fox jumps over the lazy dog and says hello to the world",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "user assistant system hello there how are you today fine thanks and you what is two plus two four",
]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level(
    folder: Path, *, bos: bool = True, control: Sequence[str] = (), pad: bool = True, template: str | None = None
) -> Path:
    """A byte-level BPE tokenizer saved to `folder`: <s> 0, </s> 1, <unk> 2, <pad> 3, then the control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<unk>", "<pad>", *control]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    bpe.train_from_iterator(TEXT, trainer)
    if bos:
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **({"pad_token": "<pad>"} if pad else {})}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **named)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def plain_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def chat_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    return byte_level(folder, bos=False, control=("<|im_start|>", "<|im_end|>"), template=CHATML)


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    def write(rows: Sequence[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """A Config from a dataset entry and other keys, through the real loader."""

    def make(tokenizer: Path, dataset: dict[str, Any] | Sequence[dict[str, Any]], **keys: Any) -> Config:
        datasets = [dataset] if isinstance(dataset, dict) else list(dataset)
        document = {"base_model": str(tokenizer), "micro_batch_size": 1, "datasets": datasets, **keys}
        return loads(json.dumps(document)).config

    return make
