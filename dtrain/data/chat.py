"""Conversations: what the chat template renders, trained exactly where the model has to speak.

Where a turn's text begins and ends is found by rendering, not by looking for text:

    begin   what the template renders up to the turn and then asks the model with (`add_generation_prompt`) is how the
            full text begins: all after it is the model's
    end     what it renders up to and with the turn is how the full text begins

A template for which this does not hold (one that rewrites earlier turns) is rendered twice more with another text in
the turn's place: what both share before and after it is not the turn's text. When that does not fit either, it is an
error. A trained turn ends in its stop token, whatever token that is in this template.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from dtrain.config.schema import Dataset
from dtrain.data.formats import Example, Outcome, RowProblem, attempt, columns
from dtrain.data.rows import NOT_TRAINED
from dtrain.data.sources import Row
from dtrain.data.tokenizer import Encoder

Message = dict[str, Any]
TrainOnEos = Literal["all", "turn", "last", "none"]

ALIASES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's role names, as Axolotl reads them."""

_STAND_INS = ("Qa one zX", "Wb two yK")
"""Two texts without a first or last letter in common."""


class Turn(NamedTuple):
    """Where one message lies in the rendered text, in characters."""

    role: str
    begin: int
    """Where its own text begins."""
    end: int
    """Where the turn is over, its stop token included."""


class Rendered(NamedTuple):
    text: str
    turns: list[Turn]


@dataclass(frozen=True, eq=False)
class Chat:
    encoder: Encoder
    template: str
    column: str
    role: str
    content: str
    aliases: dict[str, str]
    trained_roles: frozenset[str]
    train_on_eos: TrainOnEos
    train_on_inputs: bool
    _asking: dict[str, bool] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, dataset: Dataset, encoder: Encoder, template: str, train_on_inputs: bool) -> Chat:
        names = dataset.message_property_mappings
        said = {other: role for role, others in (dataset.roles or {}).items() for other in others}
        aliases = {**ALIASES, **said}
        trained = dataset.roles_to_train if dataset.roles_to_train is not None else ["assistant"]
        return cls(
            encoder=encoder,
            template=template,
            column=dataset.field_messages,
            role=names.role if names else "role",
            content=names.content if names else "content",
            aliases=aliases,
            trained_roles=frozenset(aliases.get(role, role) for role in trained),
            train_on_eos=dataset.train_on_eos,
            train_on_inputs=train_on_inputs and dataset.roles_to_train is None,
        )

    @property
    def templates(self) -> tuple[str, ...]:
        return (self.template,)

    def text(self, row: Row) -> str:
        return self._render(self.messages(row), row)

    def encode(self, rows: Sequence[Row]) -> list[Outcome]:
        rendered = [attempt(self.rendered, row) for row in rows]
        good = [one.text for one in rendered if not isinstance(one, RowProblem)]
        tokens = self.encoder.encode_with_ends(good)
        return [one if isinstance(one, RowProblem) else attempt(self._examples, one, *next(tokens)) for one in rendered]

    def rendered(self, row: Row) -> Rendered:
        """The conversation as text, and where the turns that matter for the labels lie in it."""
        messages = self.messages(row)
        text = self._render(messages, row)
        asked = [index for index, message in enumerate(messages) if self._matters(message, index, len(messages))]
        return Rendered(text, [self._turn(messages, index, text, row) for index in asked])

    def messages(self, row: Row) -> list[Message]:
        """The row's messages with `role` and `content` under these names and roles by their own names."""
        found = row.get(self.column)
        if not isinstance(found, list):
            what = "there is no column" if self.column not in row else "there is no list of messages in column"
            fix = "field_messages: NAME; ShareGPT rows: `type: sharegpt`"
            raise RowProblem(f"{what} {self.column!r}; the columns are {columns(row)}", key="field_messages", fix=fix)
        if not found:
            raise RowProblem("the conversation is empty", key="field_messages")
        return [self._message(one) for one in found]

    def _message(self, said: Any) -> Message:
        if not isinstance(said, dict) or self.role not in said or self.content not in said:
            what = f"a message needs {self.role!r} and {self.content!r}; there is {columns(said)}"
            fix = "message_property_mappings: {role: from, content: value}"
            raise RowProblem(what, key="message_property_mappings", fix=fix)
        rest = {name: value for name, value in said.items() if name not in (self.role, self.content)}
        return {**rest, "role": self.aliases.get(said[self.role], said[self.role]), "content": said[self.content]}

    def _matters(self, message: Message, index: int, messages: int) -> bool:
        if self.train_on_inputs:
            return False
        ends_are_trained = self.train_on_eos == "all" or (self.train_on_eos == "last" and index == messages - 1)
        return message["role"] in self.trained_roles or ends_are_trained

    # --- where a turn lies ----------------------------------------------------------------------------------------

    def _turn(self, messages: list[Message], index: int, text: str, row: Row) -> Turn:
        message = messages[index]
        begin = self._begin_by_prompt(messages, index, text, row) if message["role"] == "assistant" else None
        end = self._end_by_prefix(messages, index, text, row)
        if begin is None or end is None:
            low, high = self._by_stand_ins(messages, index, text, row)
            begin = low if begin is None else begin
            end = self._next_stop(text, high) if end is None else end
        return Turn(message["role"], begin, end)

    def _begin_by_prompt(self, messages: list[Message], index: int, text: str, row: Row) -> int | None:
        """None where the template does not ask the model to speak, or does so in other words than it later renders."""
        if index == 0 or not self._asks(messages[index - 1]["role"]):
            return None
        try:
            asking = self._render(messages[:index], row, ask=True)
        except RowProblem:  # templates may refuse a part of a conversation
            return None
        return len(asking) if text.startswith(asking) else None

    def _asks(self, role: str) -> bool:
        """Whether the template adds a prompt for the model after a message of this role; some never do."""
        if role not in self._asking:
            probe = [{"role": "user", "content": "?"}, *([{"role": role, "content": "?"}] if role != "user" else [])]
            try:
                self._asking[role] = self._render(probe, {}, ask=True) != self._render(probe, {})
            except RowProblem:
                self._asking[role] = False
        return self._asking[role]

    def _end_by_prefix(self, messages: list[Message], index: int, text: str, row: Row) -> int | None:
        if index == len(messages) - 1:
            return len(text)
        try:
            until = self._render(messages[: index + 1], row)
        except RowProblem:
            return None
        return len(until) if text.startswith(until) else None

    def _by_stand_ins(self, messages: list[Message], index: int, text: str, row: Row) -> tuple[int, int]:
        """Where the content begins and ends, from two renderings with other contents."""
        one, other = (
            self._render([*messages[:index], {**messages[index], "content": said}, *messages[index + 1 :]], row)
            for said in _STAND_INS
        )
        begin = _shared(one, other)
        after = _shared(one[::-1], other[::-1])
        end = len(text) - after
        if end < begin or not text.startswith(one[:begin]) or not text.endswith(one[len(one) - after :]):
            words = f"message {index + 1} cannot be located in what the chat template renders"
            raise RowProblem(words, key="chat_template", fix="another chat_template, or rows without this message")
        return begin, end

    def _next_stop(self, text: str, position: int) -> int:
        """The end of the first token that can stop a turn at or after `position`."""
        [(ids, ends)] = self.encoder.encode_with_ends([text])
        first = bisect_right(ends, position)
        return next((ends[at] for at in range(first, len(ids)) if ids[at] in self.encoder.stop_ids), position)

    # --- labels ---------------------------------------------------------------------------------------------------

    def _examples(self, rendered: Rendered, ids: list[int], ends: list[int]) -> list[Example]:
        if self.train_on_inputs:
            return [Example(ids, list(ids))]
        labels = [NOT_TRAINED] * len(ids)
        for number, turn in enumerate(rendered.turns, start=1):
            first, last = bisect_right(ends, turn.begin), bisect_right(ends, turn.end)
            stop = self._stop(ids, first, last)
            trained = turn.role in self.trained_roles
            if stop is None and trained and self.train_on_eos != "none":
                raise RowProblem(_no_stop(number), key="chat_template", fix=_NO_STOP_FIX)
            if trained:
                labels[first : last if stop is None else stop] = ids[first : last if stop is None else stop]
            if stop is not None and self._trains_stop(turn, rendered):
                labels[stop] = ids[stop]
        return [Example(ids, labels)]

    def _trains_stop(self, turn: Turn, rendered: Rendered) -> bool:
        if self.train_on_eos == "last":
            return turn.end == len(rendered.text)
        return self.train_on_eos == "all" or (self.train_on_eos == "turn" and turn.role in self.trained_roles)

    def _stop(self, ids: list[int], first: int, last: int) -> int | None:
        """The stop token of the turn `ids[first:last]`: its last token but for white space after it."""
        for at in range(last - 1, first - 1, -1):
            if ids[at] in self.encoder.stop_ids:
                return at
            if self.encoder.tokenizer.decode([ids[at]]).strip():
                return None
        return None

    def _render(self, messages: list[Message], row: Row, ask: bool = False) -> str:
        options = {"tools": row["tools"]} if row.get("tools") else {}
        try:
            text: str = self.encoder.tokenizer.apply_chat_template(
                messages, chat_template=self.template, tokenize=False, add_generation_prompt=ask, **options
            )
        except Exception as error:  # a template is a program: anything may come out of it
            raise RowProblem(f"the chat template refuses it: {error}", key="chat_template") from error
        return text


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _no_stop(number: int) -> str:
    return f"trained turn {number} does not end in a stop token, so the model would never learn to stop"


_NO_STOP_FIX = (
    "name the token this template ends a turn with: special_tokens: {eos_token: ...} or tokens: [...]; "
    "or another chat_template; or train_on_eos: none"
)
