"""YAML text as a tree of nodes that know their lines. Safe: no tag builds an object, aliases cannot explode.

Scalars follow YAML 1.2 (`2e-5` is a number, `on` is text), so a value means what it looks like.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import yaml

from dtrain.config.origins import KeyPath, Origin, dotted
from dtrain.errors import BadInput

MAX_VALUES = 100_000
"""Values a file may hold after its aliases are expanded; a config has a few hundred."""
MAX_DEPTH = 50
"""Levels of nesting; a config has about five."""

_TAG = "tag:yaml.org,2002:"
_SCALARS: tuple[
    tuple[str, str, str], ...
] = (  # tag, pattern (YAML 1.2.2 core schema, 10.3.2), possible first characters
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    ("int", r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
)


@dataclass(frozen=True)
class Node:
    """One value of the file: a scalar, a mapping or a list of nodes, and where it was said."""

    value: Any
    """str, int, float, bool, None, `dict[str, Node]` or `list[Node]`."""
    origin: Origin
    text: str | None = None
    """A scalar as it was typed."""

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.value, dict)

    def plain(self) -> Any:
        """Ordinary Python data."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def walk(self, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
        """Itself and all below it."""
        yield path, self
        below: Any = ()
        if isinstance(self.value, dict):
            below = self.value.items()
        elif isinstance(self.value, list):
            below = enumerate(self.value)
        for part, node in below:
            yield from node.walk((*path, part))

    def said(self, path: KeyPath) -> Node:
        """The same value, remembering the key it was typed under."""
        return replace(self, origin=replace(self.origin, said_as=dotted(path)))


def grown(value: Any, origin: Origin) -> Node:
    """A node from plain data, everything from one origin."""
    if isinstance(value, dict):
        return Node({str(key): grown(one, origin) for key, one in value.items()}, origin)
    if isinstance(value, list):
        return Node([grown(one, origin) for one in value], origin)
    return Node(value, origin, str(value))


def error_at(origin: Origin, key: str | None, message: str, **told: Any) -> BadInput:
    """An error that points where the value was said."""
    file = origin.file if origin.kind == "file" else (f"--set {origin.said_as}" if origin.kind == "flag" else None)
    return BadInput(message, file=file, line=origin.line, key=key, **told)


def read(text: str, origin: Origin) -> tuple[Node, list[BadInput]]:
    """The tree of one YAML document and its duplicate keys. BadInput when it is not YAML at all."""
    try:
        if _levels(text) > MAX_DEPTH:  # the C composer recurses: it would end the process, not raise
            raise _too_deep(origin)
        root = yaml.compose(text, Loader=_Yaml12)
    except yaml.YAMLError as error:
        raise _not_yaml(error, origin) from None
    grower = _Grower(origin)
    tree = grower.node(root, ()) if root is not None else Node(None, origin)
    return tree, grower.errors


def _levels(text: str) -> int:
    """The deepest nesting, from the parser's events; stops counting just above MAX_DEPTH."""
    depth = deepest = 0
    for event in yaml.parse(text, Loader=_Yaml12):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            deepest = max(deepest, depth)
            if deepest > MAX_DEPTH:
                break
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return deepest


class _Yaml12(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the C parser where it was built
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own class attribute)


class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes what YAML 1.1 or 1.2 would read as something other than text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: list(pairs) for first, pairs in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: Any, text: str) -> yaml.ScalarNode:
    """Lines as lines: a template stays readable."""
    scalar: yaml.ScalarNode = dumper.represent_scalar(_TAG + "str", text, style="|" if "\n" in text else None)
    return scalar


Dumper.add_representer(str, _text)
for _kind, _pattern, _first in _SCALARS:
    for _class in (_Yaml12, Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), ["" if c == "\0" else c for c in _first])
_Yaml12.add_implicit_resolver(_TAG + "merge", re.compile(r"^<<$"), ["<"])


class _Grower:
    """Turns PyYAML's nodes into ours; collects duplicate keys, refuses what is unsafe."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.errors: list[BadInput] = []
        self.values = 0

    def at(self, node: yaml.Node) -> Origin:
        return replace(self.origin, line=node.start_mark.line + 1) if self.origin.kind == "file" else self.origin

    def fail(self, node: yaml.Node, path: KeyPath, message: str, fix: str) -> NoReturn:
        raise error_at(self.at(node), dotted(path) or None, message, fix=fix)

    def node(self, found: yaml.Node, path: KeyPath, origin: Origin | None = None) -> Node:
        origin = origin or self.at(found)
        self.values += 1
        if self.values > MAX_VALUES or len(path) > MAX_DEPTH:
            raise _too_deep(origin)
        if isinstance(found, yaml.MappingNode):
            self.check_tag(found, path, "map")
            return Node(self.mapping(found, path), origin)
        if isinstance(found, yaml.SequenceNode):
            self.check_tag(found, path, "seq")
            return Node([self.node(one, (*path, index)) for index, one in enumerate(found.value)], origin)
        return Node(self.scalar(found, path), origin, found.value)

    def check_tag(self, found: yaml.Node, path: KeyPath, *known: str) -> str:
        kind = str(found.tag).removeprefix(_TAG)
        if kind not in known:
            self.fail(found, path, f"the YAML tag {found.tag} is not supported", "write the plain value without a tag")
        return kind

    def scalar(self, found: yaml.Node, path: KeyPath) -> Any:
        kind = self.check_tag(found, path, "str", "int", "float", "bool", "null", "merge")
        try:
            value = _READ[kind](found.value)
        except (ValueError, KeyError):  # `!!int x`, or more digits than Python converts
            return found.value
        return value if kind != "float" or math.isfinite(value) else found.value  # JSON has no infinity

    def mapping(self, found: yaml.MappingNode, path: KeyPath) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key_node, value_node in found.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.fail(key_node, path, "a key must be text", "use a plain word as the key")
            if key_node.tag == _TAG + "merge":
                merged = {**self.merge(value_node, path), **merged}
                continue
            key = str(key_node.value)
            value = self.node(value_node, (*path, key), self.at(key_node))
            if key in own:
                self.errors.append(_twice(own[key].origin, value.origin, (*path, key)))
            own[key] = value
        return {**merged, **own}

    def merge(self, found: yaml.Node, path: KeyPath) -> dict[str, Node]:
        """`<<: *base` or `<<: [*a, *b]`: the earlier one wins."""
        sources = found.value if isinstance(found, yaml.SequenceNode) else [found]
        result: dict[str, Node] = {}
        for source in sources:
            if not isinstance(source, yaml.MappingNode):
                self.fail(found, path, "<< needs a mapping", "point it at an anchor of a mapping: `<<: *base`")
            if len(path) >= MAX_DEPTH:
                raise _too_deep(self.at(found))
            result = {**self.node(source, (*path, "<<")).value, **result}
        return result


def _number(text: str) -> int:
    bases = {"0o": 8, "0x": 16}
    return int(text[2:], bases[text[:2]]) if text[:2] in bases else int(text)


def _real(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_TRUTH = {"true": True, "false": False}
_READ: dict[str, Any] = {
    "str": str,
    "merge": str,
    "int": _number,
    "float": _real,
    "bool": lambda text: _TRUTH[text.lower()],
    "null": lambda text: None,
}


def _twice(first: Origin, second: Origin, path: KeyPath) -> BadInput:
    lines = f" (lines {first.line} and {second.line})" if first.line is not None else ""
    return error_at(second, dotted(path), f"the key is there twice{lines}", fix="keep one of them")


def _too_deep(origin: Origin) -> BadInput:
    limits = f"more than {MAX_VALUES:,} values or {MAX_DEPTH} levels"
    return error_at(origin, None, f"not a config: {limits}", fix="a config is flat; an anchor may contain itself")


def _not_yaml(error: yaml.YAMLError, origin: Origin) -> BadInput:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
    context = getattr(error, "context", None)
    if mark is not None and origin.kind == "file":
        origin = replace(origin, line=mark.line + 1)
    told = f"not YAML: {problem}" + (f" {context}" if context else "")
    return error_at(origin, None, told, fix="check indentation, quotes and colons at this line")
