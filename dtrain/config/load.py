"""From a file, or text, and `--set` flags to a Config whose every value knows where it was said."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from dtrain import assets
from dtrain.config import axolotl, deepspeed_read, rules
from dtrain.config.find import find_file, read_small
from dtrain.config.idle import idle_keys
from dtrain.config.origins import KeyPath, Loaded, Origin, dotted
from dtrain.config.schema import Config
from dtrain.config.tree import Dumper, Node, error_at, read
from dtrain.config.validate import MISSING, did_you_mean, validated, without_nulls
from dtrain.errors import BadInput, BadInputs

__all__ = ["Loaded", "Origin", "dump", "find_file", "load", "loads"]


def load(path: Path | str, sets: Sequence[str] = ()) -> Loaded:
    """Read a config file. `sets` are `a.b=c` texts that overrule it. BadInputs with every error there is."""
    path = Path(path)
    return _loaded(text_of(path), str(path), path, sets)


def loads(text: str, name: str = "<text>", sets: Sequence[str] = ()) -> Loaded:
    """The same from text; `name` stands for the file in messages."""
    return _loaded(text, name, None, sets)


def dump(config: Config) -> str:
    """YAML with every value explicit: `loads(dump(config)).config == config`. It is a run's `config.yaml`."""
    return as_yaml(config.model_dump(mode="json"))


def as_yaml(plain: Any) -> str:
    """YAML of ordinary data, its keys in their order."""
    return yaml.dump(plain, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120, indent=2)


def _loaded(text: str, name: str, file: Path | None, sets: Sequence[str]) -> Loaded:
    tree, errors = tree_of(text, name, sets)
    return replace(from_tree(tree, errors, file), sets=tuple(sets))


def tree_of(text: str, name: str, sets: Sequence[str] = ()) -> tuple[Node, list[BadInput]]:
    """The tree of a text with flags over it, its duplicate keys and bad flags; BadInputs when it is not YAML."""
    try:
        tree, errors = read(text, Origin("file", name))
    except BadInput as error:
        raise BadInputs([error]) from None
    for said in sets if tree.is_mapping else ():
        try:
            tree = with_flag(tree, said)
        except BadInput as error:
            errors.append(error)
    return tree, errors


def from_tree(tree: Node, errors: Sequence[BadInput], file: Path | None) -> Loaded:
    """The config of a tree that was read; `errors` are those found while reading it."""
    if not tree.is_mapping:
        raise BadInputs([_not_a_mapping(tree)])
    translated = axolotl.translate(tree)
    resolved = deepspeed_read.resolve(without_nulls(translated.tree), file)
    tree = resolved.tree
    config, wrong = validated(tree, axolotl.names())
    found = [*errors, *translated.errors, *resolved.errors, *wrong, *rules.contradictions(tree)]
    found += deepspeed_read.disagreements(config, tree) if config is not None else []
    if found or config is None:
        raise BadInputs(sorted(_without_echoes(found), key=lambda error: error.line or 0))
    origins = {dotted(path): node.origin for path, node in tree.walk() if path}
    notes = (*translated.notes, *resolved.notes, *rules.remarks(config), *idle_keys(config))
    return Loaded(config, origins, notes, file)


def _without_echoes(errors: list[BadInput]) -> list[BadInput]:
    """A missing key that another error takes to be misspelt is told once."""
    meant = {error.fix for error in errors}
    return [error for error in errors if not (error.message == MISSING and did_you_mean(str(error.key)) in meant)]


# --- the file -----------------------------------------------------------------------------------------------------


def text_of(path: Path) -> str:
    """A config file's text; BadInputs in plain words when there is none."""
    try:
        if path.is_dir():
            raise BadInputs([_is_a_folder(path)])
        return read_small(path).decode("utf-8-sig")
    except BadInput as error:
        raise (error if isinstance(error, BadInputs) else BadInputs([error])) from None
    except FileNotFoundError:
        raise BadInputs([_no_such_file(path)]) from None
    except UnicodeDecodeError as error:
        found = BadInput(f"not UTF-8 text (byte {error.start})", file=str(path), fix="save the file as UTF-8")
        raise BadInputs([found]) from None
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise BadInputs([BadInput(f"cannot be read: {words}", file=str(path))]) from None


def _is_a_folder(path: Path) -> BadInput:
    inside = sorted(str(file) for file in path.glob("*.y*ml"))
    return BadInput("this is a folder, not a file", file=str(path), fix=_name_one(inside, "name the YAML file in it"))


def _no_such_file(path: Path) -> BadInput:
    shipped = assets.shipped(str(path)) if not path.is_absolute() else None
    if shipped is not None:
        return BadInput("no such file", file=str(path), fix=f"the one that ships with dtrain is {shipped}")
    folders = dict.fromkeys((path.parent, Path("configs")))
    beside = [str(file) for folder in folders for file in sorted(folder.glob("*.y*ml"))]
    by_name = {Path(file).name: file for file in reversed(beside)}
    near = difflib.get_close_matches(path.name, by_name, n=1)
    fix = f"did you mean {by_name[near[0]]}?" if near else _name_one(beside, "check the path")
    return BadInput("no such file", file=str(path), fix=fix)


def _name_one(files: list[str], otherwise: str) -> str:
    return f"the YAML files there: {', '.join(files[:5])}" if files else otherwise


def _not_a_mapping(tree: Node) -> BadInput:
    if tree.value is None:
        return error_at(
            tree.origin, None, "the file is empty", fix="start from configs/storyteller.yaml (dtrain config show)"
        )
    kind = "a list" if isinstance(tree.value, list) else "a single value"
    return error_at(
        tree.origin, None, f"the file holds {kind}, not a mapping", allowed="key: value lines", fix="`base_model: …`"
    )


# --- flags --------------------------------------------------------------------------------------------------------

_STEP = re.compile(r"\.?([^.\[\]=]+)|\[(\d{1,6})\]")


def with_flag(tree: Node, said: str) -> Node:
    """The tree with one `a.b[0].c=value` laid over it; the value is read as YAML."""
    key, equals, text = said.partition("=")
    path = _flag_path(key)
    if not equals or path is None:
        raise BadInput("--set needs key=value", value=said, fix="for example: --set learning_rate=1e-4")
    value, errors = read(text, Origin("flag", said_as=key))
    for error in errors:
        raise error
    return _laid_over(tree, path, value, ())


def _flag_path(key: str) -> KeyPath | None:
    path: list[str | int] = []
    position = 0
    while position < len(key):
        step = _STEP.match(key, position)
        if step is None or (position == 0 and step[1] is None):
            return None
        path.append(step[1] if step[1] is not None else int(step[2]))
        position = step.end()
    return tuple(path) or None


def _laid_over(tree: Node, rest: KeyPath, value: Node, done: KeyPath) -> Node:
    if not rest:
        return value
    head, rest = rest[0], rest[1:]
    if isinstance(head, int):
        items = list(tree.value) if isinstance(tree.value, list) else []
        if head > len(items):
            raise error_at(value.origin, dotted((*done, head)), f"there are only {len(items)} entries")
        items[head : head + 1] = [_laid_over(_or_nothing(items, head, value), rest, value, (*done, head))]
        return replace(tree, value=items)
    keys = dict(tree.value) if isinstance(tree.value, dict) else {}
    keys[head] = _laid_over(keys.get(head) or Node(None, value.origin), rest, value, (*done, head))
    return replace(tree, value=keys)


def _or_nothing(items: list[Node], index: int, value: Node) -> Node:
    return items[index] if index < len(items) else Node(None, value.origin)
