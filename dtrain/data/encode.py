"""Which rows go into which split, and what becomes of each: an example, dropped and why, or an error that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dtrain.config.schema import Config, Dataset, PromptFormat
from dtrain.data.chat import Chat
from dtrain.data.formats import (
    ALPACA,
    Completion,
    Example,
    Format,
    Prompted,
    RowProblem,
    TokenRow,
    check_columns,
    check_templates,
)
from dtrain.data.locate import open_source
from dtrain.data.pack import IntArray
from dtrain.data.rows import trained_positions
from dtrain.data.schedule import permutation
from dtrain.data.sources import Selected, Source
from dtrain.data.tokenizer import Encoder, chat_template
from dtrain.errors import BadInput, BadInputs

BATCH_ROWS = 1000
"""Rows tokenised at once: enough for the tokenizer's threads, little enough for memory."""
TOLD_ROWS = 5
"""Row numbers named in a message."""

Fate = Literal["kept", "truncated", "too_long", "too_short", "nothing_trained_after_truncation"]


@dataclass(frozen=True, eq=False)
class Part:
    """The rows that one entry of the config gives to one split."""

    source: Source
    dataset: Dataset
    key: str
    """The entry's place in the config: `datasets[0]`."""
    numbers: IntArray
    """The number each row has in the entry (from 0), for messages."""

    def batches(self) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
        for first in range(0, len(self.numbers), BATCH_ROWS):
            numbers = self.numbers[first : first + BATCH_ROWS].tolist()
            yield numbers, self.source.read(numbers)


@dataclass(frozen=True, eq=False)
class Inputs:
    train: tuple[Part, ...]
    eval: tuple[Part, ...]
    duplicates: int
    """Rows left out because an equal one came before."""

    @property
    def fingerprint(self) -> list[list[str]]:
        return [
            [Selected(part.source, part.numbers).fingerprint for part in parts] for parts in (self.train, self.eval)
        ]


class Encoded(NamedTuple):
    number: int
    """The row's number in its entry, from 0."""
    example: Example
    fate: Fate
    length: int
    """Tokens before anything was cut."""


def open_inputs(config: Config, config_dir: Path | None) -> Inputs:
    """Opens every source and says which row is trained on and which is held out. BadInputs for all that fail."""
    errors: list[BadInput] = []
    opened = {
        name: _opened(getattr(config, name) or [], name, config_dir, errors) for name in ("datasets", "test_datasets")
    }
    if errors:
        raise BadInputs(errors)
    train, held_out, duplicates = opened["datasets"], opened["test_datasets"], 0
    if config.dataset_exact_deduplication:
        seen: set[bytes] = set()
        before = sum(len(part.numbers) for part in train + held_out)
        train, held_out = (
            [_first_of_equals(part, seen) for part in train],
            [_first_of_equals(part, seen) for part in held_out],
        )
        duplicates = before - sum(len(part.numbers) for part in train + held_out)
    if not held_out and config.val_set_size:
        train, held_out = _split(train, config.val_set_size, config.seed)
    return Inputs(tuple(train), tuple(held_out), duplicates)


def make_format(part: Part, config: Config, tokenizer: Any, encoder: Encoder) -> Format:
    """The format of one entry. BadInput where the tokenizer or the rows cannot give it."""
    dataset, first = part.dataset, part.source.read([0])[0]
    inputs = config.train_on_inputs if dataset.train_on_inputs is None else dataset.train_on_inputs
    if "input_ids" in first:
        return TokenRow(len(tokenizer))
    if isinstance(dataset.type, PromptFormat):
        head = part.source.read(range(min(BATCH_ROWS, len(part.source))))
        if errors := [*check_templates(dataset.type, part.key), *check_columns(dataset.type, head, part.key)]:
            raise BadInputs(errors)
        return Prompted(dataset.type, encoder, inputs)
    if dataset.type == "alpaca":
        return Prompted(ALPACA, encoder, inputs)
    if dataset.type == "completion":
        return Completion(dataset.field or "text", encoder, config.sequence_len)
    if dataset.type == "chat_template":
        return Chat.of(dataset, encoder, _template(part, tokenizer), inputs)
    raise BadInput(
        "dtrain does not know this type", key=f"{part.key}.type", value=dataset.type,
        allowed="alpaca, chat_template, completion, or a mapping with field_instruction, field_output, format …",
        fix="describe the prompt yourself: type: {field_instruction: …, field_output: …, no_input_format: …}",
    )  # fmt: skip


def encode_part(part: Part, how: Format, config: Config, encoder: Encoder) -> Iterator[Encoded]:
    """Every example of the part with its fate. Bad rows are gathered and raised together at the end."""
    two_bos = [encoder.bos_id] * 2 if encoder.bos_id != encoder.eos_id else None
    problems = Problems(part)
    for numbers, rows in part.batches():
        for number, outcome in zip(numbers, how.encode(rows), strict=True):
            if isinstance(outcome, RowProblem):
                problems.add(number, outcome)
                continue
            for example in outcome:
                encoded = _judged(number, example, config)
                if example.ids[:2] == two_bos:
                    problems.add(number, TWO_BOS)
                elif encoded.fate == "kept" and not any_trained(example.labels):
                    problems.add(number, NOTHING_TRAINED)
                yield encoded
        problems.raise_if_hopeless()
    problems.raise_if_any()


NOTHING_TRAINED = RowProblem(
    "no token of the row would be trained",
    fix="give it an output (or a turn of a role in roles_to_train), or delete it",
)
TWO_BOS = RowProblem("the row starts with two BOS tokens", fix="take the BOS out of the chat template or the text")


def any_trained(labels: list[int]) -> bool:
    return trained_positions(labels) > 0


def _judged(number: int, example: Example, config: Config) -> Encoded:
    length, window = len(example.ids), config.sequence_len
    if length < config.min_sample_len:
        return Encoded(number, example, "too_short", length)
    if length <= window:
        return Encoded(number, example, "kept", length)
    if config.excess_length_strategy != "truncate":
        return Encoded(number, example, "too_long", length)
    cut = Example(example.ids[:window], example.labels[:window])
    lost = any_trained(example.labels) and not any_trained(cut.labels)
    return Encoded(number, cut, "nothing_trained_after_truncation" if lost else "truncated", length)


@dataclass
class Problems:
    """Bad rows of one part, grouped by what is wrong."""

    part: Part
    rows: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    first: dict[tuple[str, str], RowProblem] = field(default_factory=dict)

    def add(self, number: int, problem: RowProblem) -> None:
        self.first.setdefault(problem.same_as(), problem)
        self.rows.setdefault(problem.same_as(), []).append(number)

    def raise_if_hopeless(self) -> None:
        """No need to read a million rows to say that a column is missing in all of them."""
        if sum(map(len, self.rows.values())) >= BATCH_ROWS:
            self.raise_if_any()

    def raise_if_any(self) -> None:
        if self.rows:
            raise BadInputs([self._error(same) for same in list(self.rows)[:TOLD_ROWS]])

    def _error(self, same: tuple[str, str]) -> BadInput:
        problem, rows = self.first[same], self.rows[same]
        file, line = self.part.source.where(rows[0])
        key = f"{self.part.key}.{problem.key}" if problem.key != "train_tokenizer" else problem.key
        fix = problem.fix
        if problem.key.startswith("field_") and isinstance(self.part.dataset.type, PromptFormat):
            key = f"{self.part.key}.type.{problem.key}"
        elif self.part.dataset.type == "alpaca":  # its columns have no keys
            key, fix = f"{self.part.key}.type", "name yours: type: {field_instruction: …, field_output: …, format: …}"
        words = f"{problem.message} ({row_numbers(rows)})"
        return BadInput(words, file=file, line=line, key=key, fix=fix)


def row_numbers(rows: Sequence[int]) -> str:
    """`row 3`, `rows 3, 7, 9 and 12 more`: from 1, as editors count lines."""
    told = sorted(set(rows))
    more = f" and {len(told) - TOLD_ROWS} more" if len(told) > TOLD_ROWS else ""
    return f"row{'s' if len(told) > 1 else ''} {', '.join(str(row + 1) for row in told[:TOLD_ROWS])}{more}"


def _opened(datasets: Sequence[Dataset], name: str, config_dir: Path | None, errors: list[BadInput]) -> list[Part]:
    parts = []
    for index, dataset in enumerate(datasets):
        key = f"{name}[{index}]"
        try:
            source = open_source(dataset, config_dir, key)
        except BadInput as error:
            errors.append(error)
        else:
            parts.append(Part(source, dataset, key, np.arange(len(source), dtype=np.int64)))
    return parts


def _template(part: Part, tokenizer: Any) -> str:
    said = part.dataset.chat_template
    text = chat_template(said, None, tokenizer, f"{part.key}.chat_template") if said else None
    text = text or tokenizer.chat_template
    if isinstance(text, dict):
        text = text.get("default")
    if not text:
        fix = "chat_template: chatml, or your own as chat_template_jinja, or tokenizer_config: a model that has one"
        words = "the rows are conversations, and the tokenizer has no chat template"
        raise BadInput(words, key="chat_template", fix=fix)
    return str(text)


def _first_of_equals(part: Part, seen: set[bytes]) -> Part:
    kept = []
    for numbers, rows in part.batches():
        for number, row in zip(numbers, rows, strict=True):
            content = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
            digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).digest()
            if digest not in seen:
                seen.add(digest)
                kept.append(number)
    return Part(part.source, part.dataset, part.key, np.asarray(kept, dtype=np.int64))


def _split(parts: Sequence[Part], val_set_size: float, seed: int) -> tuple[list[Part], list[Part]]:
    """Rows drawn by `seed` are held out; both splits keep the order of the files."""
    total = sum(len(part.numbers) for part in parts)
    wanted = round(val_set_size * total) if val_set_size < 1 else int(val_set_size)
    if not 0 < wanted < total:
        what = "no row for evaluation" if wanted == 0 else "no row to train on"
        words = f"of {total} rows this holds out {wanted}, which leaves {what}"
        raise BadInput(words, key="val_set_size", value=val_set_size, allowed=f"a share, or 1 to {total - 1} rows")
    drawn = np.zeros(total, dtype=bool)
    drawn[permutation(seed, 0, 2, total)[:wanted]] = True
    cuts = np.cumsum([len(part.numbers) for part in parts])[:-1]
    by_part = list(zip(parts, np.split(drawn, cuts), strict=True))
    return [_subset(part, ~held) for part, held in by_part], [_subset(part, held) for part, held in by_part]


def _subset(part: Part, mask: Any) -> Part:
    return Part(part.source, part.dataset, part.key, part.numbers[mask])
