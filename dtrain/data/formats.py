"""From rows to ids and labels. Labels are built with the ids, part by part; no text is searched for, ever.

    prompt formats  prompt (BOS kept, not trained) + output + EOS (trained)
    completion      text + EOS, cut into windows, all trained
    token rows      rows that already hold input_ids and labels

Conversations are in `chat.py`. A row that cannot become an example raises RowProblem; `encode.py` adds where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

from dtrain.config.schema import PromptFormat
from dtrain.data.rows import NOT_TRAINED
from dtrain.data.sources import Row
from dtrain.data.tokenizer import Encoder
from dtrain.errors import BadInput

ALPACA = PromptFormat(
    system_format="",
    format=(
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    ),
    no_input_format=(
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n"
    ),
)
"""Stanford Alpaca's two prompts (tatsu-lab/stanford_alpaca, train.py)."""


P = ParamSpec("P")
T = TypeVar("T")


class Example(NamedTuple):
    """One sequence: token ids, and labels that are the id where trained, else -100."""

    ids: list[int]
    labels: list[int]


class RowProblem(Exception):
    """Why a row cannot be used. Rows with an equal problem are told together, in one BadInput."""

    def __init__(self, message: str, *, key: str = "type", fix: str | None = None) -> None:
        super().__init__(message)
        self.message, self.key, self.fix = message, key, fix

    def same_as(self) -> tuple[str, str]:
        return self.message, self.key


Outcome = list[Example] | RowProblem


class Format(Protocol):
    """What a `type:` means."""

    @property
    def templates(self) -> tuple[str, ...]:
        """The texts written around the row's own, in which a new tokenizer looks for control tokens."""

    def text(self, row: Row) -> str:
        """The row as one text, for training a tokenizer. RowProblem."""

    def encode(self, rows: Sequence[Row]) -> list[Outcome]:
        """For each row its examples, or what is wrong with it."""


@dataclass(frozen=True, eq=False)
class Prompted:
    """An instruction and what to answer (Axolotl's user-defined `type:`, and alpaca)."""

    format: PromptFormat
    encoder: Encoder
    train_on_inputs: bool

    @property
    def templates(self) -> tuple[str, ...]:
        return self.format.system_format, self.format.format, self.format.no_input_format

    def parts(self, row: Row) -> tuple[str, str]:
        """Prompt and output as text."""
        how = self.format
        instruction = field(row, how.field_instruction, "field_instruction")
        output = field(row, how.field_output, "field_output")
        given = optional(row, how.field_input)
        system = optional(row, how.field_system) if how.field_system in row else how.system_prompt
        prompt = how.system_format.format(system=system) if system else ""
        if given:
            return prompt + how.format.format(instruction=instruction, input=given), output
        return prompt + how.no_input_format.format(instruction=instruction), output

    def text(self, row: Row) -> str:
        return "".join(self.parts(row))

    def encode(self, rows: Sequence[Row]) -> list[Outcome]:
        parts = [attempt(self.parts, row) for row in rows]
        good = [part for part in parts if not isinstance(part, RowProblem)]
        ids = self.encoder.encode([text for part in good for text in part])
        pairs = zip(ids[::2], ids[1::2], strict=True)
        return [part if isinstance(part, RowProblem) else [self._example(*next(pairs))] for part in parts]

    def _example(self, prompt: list[int], output: list[int]) -> Example:
        prompt = with_bos(prompt, self.encoder)
        output = closed(without_bos(output, self.encoder), self.encoder)
        masked = list(prompt) if self.train_on_inputs else [NOT_TRAINED] * len(prompt)
        return Example(prompt + output, masked + output)


@dataclass(frozen=True, eq=False)
class Completion:
    """Plain text, all of it trained; long texts become several examples, none is cut off."""

    column: str
    encoder: Encoder
    window: int
    templates: tuple[str, ...] = ()

    def text(self, row: Row) -> str:
        return field(row, self.column, "field")

    def encode(self, rows: Sequence[Row]) -> list[Outcome]:
        texts = [attempt(self.text, row) for row in rows]
        ids = iter(self.encoder.encode([text for text in texts if isinstance(text, str)]))
        return [self._examples(next(ids)) if isinstance(text, str) else text for text in texts]

    def _examples(self, text: list[int]) -> list[Example]:
        ids = closed(with_bos(text, self.encoder), self.encoder)
        pieces = [ids[first : first + self.window] for first in range(0, len(ids), self.window)]
        return [Example(piece, list(piece)) for piece in pieces]


@dataclass(frozen=True, eq=False)
class TokenRow:
    """Rows that somebody else tokenised: `input_ids` and `labels` pass as they are, once they make sense."""

    vocabulary: int
    templates: tuple[str, ...] = ()

    def text(self, row: Row) -> str:
        raise RowProblem("rows of input_ids have no text to train a tokenizer on", key="train_tokenizer")

    def encode(self, rows: Sequence[Row]) -> list[Outcome]:
        return [attempt(self._examples, row) for row in rows]

    def _examples(self, row: Row) -> list[Example]:
        if "labels" not in row or "input_ids" not in row:
            words = f"a row with one of input_ids and labels needs both; it has {columns(row)}"
            raise RowProblem(words, fix="labels: a copy of input_ids with -100 where nothing is to be learnt")
        ids, labels = list(row["input_ids"] or []), list(row["labels"] or [])
        if len(ids) != len(labels):
            raise RowProblem("input_ids and labels differ in length")
        if not all(isinstance(index, int) and 0 <= index < self.vocabulary for index in ids):
            raise RowProblem(
                f"input_ids must be numbers from 0 to {self.vocabulary - 1}, the tokenizer's size less one"
            )
        if not all(label in (NOT_TRAINED, index) for index, label in zip(ids, labels, strict=True)):
            raise RowProblem("a label is the id at its own place (not shifted), or -100")
        return [Example(ids, labels)]


def check_templates(how: PromptFormat, key: str) -> list[BadInput]:
    """Templates that name a field they do not get, or with a brace too many."""
    return [
        error
        for name, given in (
            ("format", ("instruction", "input")), ("no_input_format", ("instruction",)), ("system_format", ("system",)),
        )
        if (error := _template_error(getattr(how, name), given, f"{key}.type.{name}"))
    ]  # fmt: skip


def check_columns(how: PromptFormat, rows: Sequence[Row], key: str) -> list[BadInput]:
    """Columns that may be missing in a row, said by name, and in none of these rows."""
    names = [(name, getattr(how, name)) for name in ("field_input", "field_system")]
    said = [(name, column) for name, column in names if column != PromptFormat.model_fields[name].default]
    return [
        BadInput(
            f"none of the first {len(rows)} rows has this column; the first has {columns(rows[0])}",
            key=f"{key}.type.{name}", value=column, fix=f"leave it out, or {_near(rows[0], name, column)}",
        )
        for name, column in said if not any(column in row for row in rows)
    ]  # fmt: skip


def _template_error(template: str, given: tuple[str, ...], key: str) -> BadInput | None:
    try:
        template.format(**dict.fromkeys(given, ""))
    except (KeyError, IndexError, AttributeError) as error:
        words, fix = f"the template asks for {error}, which it does not get", "a literal brace is written {{ or }}"
    except ValueError as error:
        words, fix = f"not a template: {error}", "a literal brace is written {{ or }}"
    else:
        return None
    return BadInput(words, key=key, value=template, allowed=", ".join(f"{{{name}}}" for name in given), fix=fix)


def attempt(make: Callable[P, T], *given: P.args, **named: P.kwargs) -> T | RowProblem:
    """What `make` makes of a row, or the RowProblem it raised."""
    try:
        return make(*given, **named)
    except RowProblem as problem:
        return problem


def field(row: Row, column: str, key: str) -> str:
    """A column that must be there and hold text. `key` is the key of the config that names it."""
    if column not in row:
        words = f"there is no column {column!r}; the columns are {columns(row)}"
        raise RowProblem(words, key=key, fix=_near(row, key, column))
    if row[column] is None:
        raise RowProblem(f"the column {column!r} is empty (null)", key=key, fix="fill it, or delete these rows")
    return _as_text(row[column], column, key)


def optional(row: Row, column: str) -> str:
    """A column that may be missing or null: an empty text then."""
    value = row.get(column)
    return "" if value is None else _as_text(value, column, "type")


def columns(row: Iterable[str]) -> str:
    return ", ".join(str(name) for name in row) or "none"


def with_bos(ids: list[int], encoder: Encoder) -> list[int]:
    """The tokenizer's own BOS in front, unless the text brought it: never two."""
    own = without_bos(ids, encoder)
    brought = len(own) < len(ids) and encoder.bos_id is not None
    return [encoder.bos_id, *own] if brought and encoder.bos_id is not None else [*encoder.prefix, *own]


def without_bos(ids: list[int], encoder: Encoder) -> list[int]:
    """A BOS at the start taken away; where BOS and EOS are one token, a lone one is an end and stays."""
    first = 0
    while first < len(ids) and ids[first] == encoder.bos_id and encoder.bos_id != encoder.eos_id:
        first += 1
    return ids[first:]


def closed(ids: list[int], encoder: Encoder) -> list[int]:
    """EOS at the end, once."""
    return ids if ids and ids[-1] == encoder.eos_id else [*ids, encoder.eos_id]


def _as_text(value: Any, column: str, key: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise RowProblem(f"the column {column!r} holds {type(value).__name__}, not text", key=key)


def _near(row: Row, key: str, column: str) -> str:
    import difflib

    alike = [difflib.get_close_matches(word, row, n=1) for word in (column, key.removeprefix("field_"))]
    near = next((found for found in alike if found), None)
    return f"{key}: {near[0]}" if near else f"{key}: one of these columns"
