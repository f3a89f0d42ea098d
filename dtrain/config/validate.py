"""A tree against the schema: a Config, or every error in plain words with its line."""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dtrain.config.origins import KeyPath, dotted
from dtrain.config.schema import Config
from dtrain.config.tree import Node, error_at
from dtrain.errors import BadInput


@dataclass(frozen=True)
class _Problem:
    """One complaint of pydantic's, at a place of the tree."""

    path: KeyPath
    kind: str
    told: Mapping[str, Any]
    """pydantic's `ctx`: limits, expected values."""


def validated(tree: Node, known: Iterable[str] = ()) -> tuple[Config | None, list[BadInput]]:
    """The config, or None and the errors. `known`: names that are no keys of ours but that a typo may have meant."""
    config, problems = _attempt(tree)
    repaired = _repaired(tree, problems)
    if repaired is not None:
        tree = repaired
        config, problems = _attempt(tree)
    return config, [_told(tree, several, known) for several in _by_place(problems, tree)]


MISSING = "the key is missing and has no default"


def did_you_mean(key: str) -> str:
    """The fix of a misspelt key."""
    return f"did you mean `{key}`?"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word a typo most likely meant."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return found[0] if found else None


def without_nulls(tree: Node, path: KeyPath = ()) -> Node:
    """A key with the value null counts as unset; mappings that belong to others are left as they are."""
    if _is_open(path):
        return tree
    if isinstance(tree.value, dict):
        kept = {k: without_nulls(node, (*path, k)) for k, node in tree.value.items() if node.value is not None}
        return replace(tree, value=kept)
    if isinstance(tree.value, list):
        return replace(tree, value=[without_nulls(node, (*path, i)) for i, node in enumerate(tree.value)])
    return tree


def _is_open(path: KeyPath) -> bool:
    return path[:1] == ("deepspeed",) or (path[:1] == ("launchers",) and len(path) > 2)


def _attempt(tree: Node) -> tuple[Config | None, list[_Problem]]:
    try:
        return Config.model_validate(tree.plain(), strict=True), []
    except ValidationError as error:
        found = [_Problem(_place(tree, one), one["type"], one.get("ctx", {})) for one in error.errors()]
        return None, found


def _place(tree: Node, error: Any) -> KeyPath:
    """pydantic's `loc` without the names of union members it mixes in."""
    path: list[str | int] = []
    here: Any = tree.value
    for part in error["loc"]:
        known = part in here if isinstance(here, dict) else isinstance(here, list) and part in range(len(here))
        if known:
            here = here[part].value
        elif not (error["type"] == "missing" and part == error["loc"][-1]):
            continue
        path.append(part)
    return tuple(path)


def at(tree: Node, path: KeyPath) -> Node | None:
    """The node at a path, or None."""
    for part in path:
        try:
            tree = tree.value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return tree


def _by_place(problems: list[_Problem], tree: Node) -> Iterator[list[_Problem]]:
    """One group a place, in the file's order. Where a union complains about a mapping as a whole and about a key in
    it, only the key's complaint is of use."""
    places: dict[KeyPath, list[_Problem]] = {}
    for problem in problems:
        places.setdefault(problem.path, []).append(problem)
    for path, several in places.items():
        deeper = any(len(other) > len(path) and other[: len(path)] == path for other in places)
        if not deeper or path == ():
            yield several


# --- harmless casts -----------------------------------------------------------------------------------------------

_TRUTH = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}


def _as_int(node: Node) -> Any:
    if isinstance(node.value, float) and node.value.is_integer():
        return int(node.value)
    if isinstance(node.value, str) and re.fullmatch(r"[-+]?\d(_?\d){0,17}", node.value):
        return int(node.value)  # YAML 1.1 writes 500_000
    return None


def _as_float(node: Node) -> Any:
    text = node.value if isinstance(node.value, str) else ""
    value = float(text) if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?", text) else None
    return value if value is not None and math.isfinite(value) else None


def _as_bool(node: Node) -> Any:
    return _TRUTH.get(node.value.lower()) if isinstance(node.value, str) else None


def _as_text(node: Node) -> Any:
    return node.text if isinstance(node.value, int | float) and not isinstance(node.value, bool) else None


_CASTS: dict[str, Callable[[Node], Any]] = {
    "int_type": _as_int,
    "float_type": _as_float,
    "bool_type": _as_bool,
    "string_type": _as_text,
}


def _repaired(tree: Node, problems: list[_Problem]) -> Node | None:
    """The tree with exact casts (`"4"` → 4, `4.0` → 4, `yes` → true, 7 → "7") where the schema asked for them."""
    repaired = False
    for problem in problems:
        node = at(tree, problem.path)
        cast = _CASTS[problem.kind](node) if node is not None and problem.kind in _CASTS else None
        if cast is not None:
            tree, repaired = with_value(tree, problem.path, cast), True
    return tree if repaired else None


def with_value(tree: Node, path: KeyPath, value: Any) -> Node:
    """The tree with another value at an existing path."""
    if not path:
        return replace(tree, value=value)
    head, rest = path[0], path[1:]
    below: Any = dict(tree.value) if isinstance(tree.value, dict) else list(tree.value)
    below[head] = with_value(below[head], rest, value)
    return replace(tree, value=below)


# --- words --------------------------------------------------------------------------------------------------------

_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_LIMITS = {
    "greater_than_equal": ("ge", "{} or more"),
    "greater_than": ("gt", "more than {}"),
    "less_than_equal": ("le", "{} or less"),
    "less_than": ("lt", "less than {}"),
    "too_short": ("min_length", "a list of at least {}"),
}


def _told(tree: Node, problems: list[_Problem], known: Iterable[str]) -> BadInput:
    """One error for all complaints about one place."""
    first = problems[0]
    if first.kind == "missing":
        return _missing(tree, first.path)
    node = at(tree, first.path)
    assert node is not None, first
    if first.kind == "extra_forbidden":
        return _unknown(node, first.path, known)
    wanted = " or ".join(dict.fromkeys(word for problem in problems for word in _wanted(problem)))
    value = None if isinstance(node.value, dict | list) else node.value
    key = dotted(first.path) or None
    message = f"{_named(node)} is not allowed here" if value is None else "this value is not allowed"
    if node.origin.kind == "file" and node.origin.said_as:
        message += f" (written as {node.origin.said_as})"
    return error_at(node.origin, key, message, value=value, allowed=wanted, fix=_fix(first.path, value, problems))


def _named(node: Node) -> str:
    return "a mapping" if isinstance(node.value, dict) else "a list" if isinstance(node.value, list) else "nothing"


def _wanted(problem: _Problem) -> Iterator[str]:
    if problem.kind == "literal_error":
        yield problem.told["expected"].replace("'", "").replace(" or ", ", ").replace(", ", " | ")
    elif problem.kind in _LIMITS:
        limit, words = _LIMITS[problem.kind]
        yield words.format(problem.told[limit])
    else:
        yield _WANTED.get(problem.kind, problem.kind.replace("_", " "))


def _fix(path: KeyPath, value: Any, problems: list[_Problem]) -> str | None:
    """What to write instead, where that can be guessed."""
    key = str(path[-1]) if path else ""
    if key == "warmup_steps" and isinstance(value, float):
        return f"a share of the run is warmup_ratio: {value}"
    if isinstance(value, str):
        words = [w for p in problems if p.kind == "literal_error" for w in re.findall(r"'([^']*)'", p.told["expected"])]
        meant = nearest(value.lower(), words)
        return f"did you mean {key}: {meant}" if meant else None
    return None


def _missing(tree: Node, path: KeyPath) -> BadInput:
    around = at(tree, path[:-1]) or tree
    examples = {
        "base_model": "add `base_model: TinyLlama/TinyLlama-1.1B-Chat-v1.0`, a hub name or a folder",
        "datasets": "add `datasets:` with a list of `- path: data.jsonl` and its `type:`",
    }
    origin = around.origin if len(path) > 1 else replace(around.origin, line=None)
    fix = examples.get(str(path[-1]), f"add `{path[-1]}:`")
    return error_at(origin, dotted(path), MISSING, fix=fix)


def _unknown(node: Node, path: KeyPath, known: Iterable[str]) -> BadInput:
    word = str(path[-1])
    here = section_at(path[:-1])
    keys = list(here.model_fields) if here is not None else []
    meant = nearest(word, [*keys, *(known if len(path) == 1 else ())])
    elsewhere = [place for place, section in sections() if word in section.model_fields and section is not here]
    fix = did_you_mean(meant) if meant else "`dtrain config schema` lists every key"
    if elsewhere:
        fix = f"`{word}` belongs under {elsewhere[0]}" if elsewhere[0] else f"`{word}` belongs at the top level"
    return error_at(node.origin, dotted(path), "unknown key", value=word, fix=fix)


# --- the schema, walked -------------------------------------------------------------------------------------------


def section_at(path: KeyPath) -> type[BaseModel] | None:
    """The section of the schema whose keys are allowed at a path of the tree."""
    here: Any = Config
    for part in path:
        if isinstance(part, str):
            if isinstance(here, type) and issubclass(here, BaseModel):
                field = here.model_fields.get(part)
                here = field.annotation if field is not None else None
            else:
                here = _value_type(here)
        here = _section_in(here) or here
    return _section_in(here)


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """Every closed section with its dotted place: `""`, `datasets[]`, `datasets[].type` …"""
    yield "", Config
    yield from _below(Config, "")


def _below(section: type[BaseModel], place: str) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        if inner is None or get_origin(field.annotation) is dict:
            continue
        here = f"{place}.{name}".removeprefix(".") + ("[]" if "list[" in str(field.annotation) else "")
        yield here, inner
        yield from _below(inner, here)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The first model inside `X | None`, `list[X]`, `Annotated[X, …]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, list, Annotated):
        return next((found for arg in get_args(annotation) if (found := _section_in(arg)) is not None), None)
    return None


def _value_type(annotation: Any) -> Any:
    return get_args(annotation)[1] if get_origin(annotation) is dict else None
