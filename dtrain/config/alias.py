"""What can happen to a key that is not simply ours, as data, and the few steps that apply it to a tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dtrain.config.origins import KeyPath, dotted
from dtrain.config.tree import Node, error_at
from dtrain.errors import BadInput

NOTHING_ASKED: tuple[Any, ...] = (None, False, 0, "", [], {})
"""Values by which a key asks for nothing."""


@dataclass(frozen=True)
class Alias:
    """Another name of one of our keys. `values` translates; a value that maps to None asks for nothing."""

    to: str
    values: Mapping[Any, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Switch:
    """A boolean that stands for one value of one of our keys; false asks for nothing."""

    to: str
    value: Any
    note: str = ""


@dataclass(frozen=True)
class Ours:
    """Our own key in which some of Axolotl's values are spelled otherwise."""

    values: Mapping[Any, Any]


@dataclass(frozen=True)
class Harmless:
    """Read and left out: it cannot change the trained model. `why` is printed."""

    why: str


@dataclass(frozen=True)
class Refused:
    """Known and not honoured: an error unless the value asks for nothing or is one of `neutral`."""

    ignored: str
    """What would have happened if the key had been ignored."""
    instead: str
    neutral: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Lookalike:
    """A name that others use, or a usual slip, for one of our keys; an error that says so."""

    meant: str


@dataclass(frozen=True)
class Moved:
    """A key whose value needs more than a table: `how` writes what it stands for."""

    how: Callable[[Work, str, Node], None]
    to: str
    """Our keys it becomes, for the documentation."""


Rule = Alias | Switch | Ours | Harmless | Refused | Lookalike | Moved
Table = Mapping[str, Rule]


@dataclass
class Work:
    """One mapping of the file while its keys are translated; messages are collected."""

    keys: dict[str, Node]
    place: KeyPath = ()
    """Where the mapping lies: `()` or `("datasets", 0)`."""
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Why → the keys that were read and left out."""
    errors: list[BadInput] = field(default_factory=list)

    def key(self, name: str) -> str:
        return dotted((*self.place, name))

    def leave_out(self, name: str, why: str) -> None:
        self.left_out.setdefault(why, []).append(self.key(name))

    def note(self, node: Node, words: str) -> None:
        self.notes.append(f"{node.origin.text()}: {words}")

    def refuse(self, name: str, node: Node, message: str, fix: str) -> None:
        value = node.value if not isinstance(node.value, dict | list) else None
        self.errors.append(error_at(node.origin, self.key(name), message, value=value, fix=fix))

    def put(self, to: str, node: Node) -> None:
        """Write our key. A flag overrules the file, a value overrules auto; two different values are an error."""
        head, _, rest = to.partition(".")
        if rest:
            around = self.keys.get(head)
            inside = dict(around.value) if around is not None and isinstance(around.value, dict) else {}
            origin = around.origin if around is not None else node.origin
            self.keys[head] = Node({**inside, rest: self._stronger(inside.get(rest), node, to)}, origin)
        else:
            self.keys[head] = self._stronger(self.keys.get(head), node, to)

    def _stronger(self, there: Node | None, new: Node, to: str) -> Node:
        if there is None or there.value in (None, "auto") or there.plain() == new.plain():
            return new
        if new.value == "auto":
            return there
        if there.origin.kind == new.origin.kind:
            said = new.origin.said_as or to
            message = f"{said} and {self.key(to)} mean the same and differ: {new.plain()!r} and {there.plain()!r}"
            self.errors.append(error_at(new.origin, said, message, fix=f"keep one of them; `{to}` is the current name"))
        return new if new.origin.kind == "flag" else there


def applied(work: Work, table: Table) -> None:
    """Every key of the mapping that the table knows, translated in the file's order."""
    for name, node in list(work.keys.items()):
        rule = table.get(name)
        if rule is not None and work.keys.get(name) is node:  # another key's rule may have written or taken it
            _apply(work, name, node, rule)


def _apply(work: Work, name: str, node: Node, rule: Rule) -> None:
    match rule:
        case Ours(values):
            work.keys[name] = replace(node, value=_mapped(values, node.value))
            return
        case Moved(how):
            how(work, name, node)
            return
    del work.keys[name]
    match rule:
        case Alias(to, values, note):
            _take_alias(work, name, node, to, _mapped(values, node.value), note)
        case Switch(to, value, note):
            meant = value if node.value is True else None if asks_nothing(node) else node.value
            _take_alias(work, name, node, to, meant, note)
        case Harmless(why):
            work.leave_out(name, ASKS_FOR_NOTHING if asks_nothing(node) else why)
        case Refused(ignored, instead, neutral):
            if asks_nothing(node) or node.plain() in neutral:
                work.leave_out(name, ASKS_FOR_NOTHING)
            else:
                work.refuse(name, node, f"not honoured yet; had it been ignored, {ignored}", instead)
        case Lookalike(meant):
            work.refuse(name, node, "unknown key", f"did you mean `{meant}`?")


ASKS_FOR_NOTHING = "the value asks for nothing"


def asks_nothing(node: Node) -> bool:
    """Null, false, 0 or empty. (0 == False in Python, which is what is meant.)"""
    return node.plain() in NOTHING_ASKED


def _take_alias(work: Work, name: str, node: Node, to: str, value: Any, note: str) -> None:
    if value is None:
        work.leave_out(name, ASKS_FOR_NOTHING)
        return
    work.put(to, replace(node.said((*work.place, name)), value=value))
    work.note(node, f"`{name}` is read as `{to}`" + (f" ({note})" if note else ""))


def _mapped(values: Mapping[Any, Any], value: Any) -> Any:
    """The translation of a scalar; `True` and `1` are told apart."""
    for said, meant in values.items():
        if type(said) is type(value) and said == value:
            return meant
    return value
