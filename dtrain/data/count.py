"""Tokens of a text or a file, by tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.config.find import DATA_ENDINGS
from dtrain.config.schema import Dataset
from dtrain.data.locate import open_source
from dtrain.data.tokenizer import Encoder, named_tokenizer
from dtrain.errors import BadInput

BATCH_TEXTS = 1000


@dataclass(frozen=True)
class TokenCount:
    tokenizer: str
    vocabulary: int
    texts: int
    tokens: int
    """Without any that a format or the tokenizer would add."""
    characters: int

    @property
    def characters_per_token(self) -> float:
        return self.characters / self.tokens if self.tokens else 0.0


def count_tokens(said: str, tokenizer: str) -> TokenCount:
    """Of a file's text, or of `said` itself where it names no file. Data files: every text in every row."""
    loaded = named_tokenizer(tokenizer, "--tokenizer")
    encoder = Encoder.of(loaded) if loaded.eos_token_id is not None else Encoder(loaded, (), -1, None, frozenset())
    texts = tokens = characters = 0
    for batch in _batches(_texts(said)):
        texts += len(batch)
        characters += sum(map(len, batch))
        tokens += sum(map(len, encoder.encode(batch)))
    return TokenCount(tokenizer, len(loaded), texts, tokens, characters)


def _texts(said: str) -> Iterator[str]:
    file = _file(said)
    if file is None:
        yield said
    elif file.is_dir() or file.suffix.lower() in DATA_ENDINGS:
        source = open_source(Dataset(path=str(file)), None, "FILE")
        for first in range(0, len(source), BATCH_TEXTS):
            for row in source.read(range(first, min(first + BATCH_TEXTS, len(source)))):
                yield from _texts_in(row)
    else:
        yield _read(file)


def _file(said: str) -> Path | None:
    try:
        return Path(said) if Path(said).exists() else None
    except (OSError, ValueError):  # a text that no file can be called
        return None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"not UTF-8 text (byte {error.start})", file=str(file)) from None


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts_in(one)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == BATCH_TEXTS:
            yield batch
            batch = []
    if batch:
        yield batch
