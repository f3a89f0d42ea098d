"""An Axolotl YAML in our words, and what Axolotl would have lost of it in silence.

Axolotl 0.18 ignores keys that it does not know, at every depth, without a word (checked by running its schema).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dtrain.config import axolotl, load
from dtrain.config.alias import Lookalike, Refused, asks_nothing
from dtrain.config.find import MAX_FILE_BYTES
from dtrain.config.origins import KeyPath, dotted
from dtrain.config.schema import Config, Dataset, PromptFormat
from dtrain.config.tree import Node
from dtrain.config.validate import nearest, without_nulls


@dataclass(frozen=True)
class Lost:
    """Something that the file says and Axolotl would not have done."""

    key: str
    line: int | None
    message: str

    def as_json(self) -> dict[str, Any]:
        return {"key": self.key, "line": self.line, "message": self.message}


@dataclass(frozen=True)
class Imported:
    """The YAML for dtrain, what was lost until now, and what is to be noted."""

    lost: tuple[Lost, ...]
    notes: tuple[str, ...]
    config: str


def from_axolotl(path: Path | str, sets: Sequence[str] = ()) -> Imported:
    """Read an Axolotl file. BadInputs for what dtrain does not do, as when it is loaded."""
    path = Path(path)
    tree, errors = load.tree_of(load.text_of(path), str(path), sets)
    lost: list[Lost] = []
    if tree.is_mapping:
        lost += _changed(tree.value)
        tree = _kept(tree, lost)
    loaded = load.from_tree(tree, errors, path)
    ours = _in_order(without_nulls(axolotl.translate(tree).tree))
    return Imported(tuple(lost), (*loaded.notes, *_format_never_used(ours)), load.as_yaml(ours.plain()))


def _in_order(tree: Node) -> Node:
    """The keys in the file's order, flags after them: translation puts a renamed one last."""
    lines = {key: node.origin.line for key, node in tree.value.items()}
    return replace(tree, value=dict(sorted(tree.value.items(), key=lambda item: lines[item[0]] or MAX_FILE_BYTES)))


def _changed(keys: dict[str, Node]) -> Iterator[Lost]:
    """Keys that Axolotl knows or should know, and that do not do what they say."""
    if "sequence_length" in keys and "sequence_len" not in keys:
        yield _lost(keys, "sequence_length", "dropped in silence: Axolotl trains at its default sequence_len, 512")
    if "batch_size" in keys and not asks_nothing(keys["batch_size"]) and "gradient_accumulation_steps" not in keys:
        yield _lost(keys, "batch_size", "no effect: Axolotl's gradient_accumulation_steps stays 1, with a warning only")
    learning_rate = keys.get("learning_rate")
    if learning_rate is not None and learning_rate.text is not None and _yaml_1_1_text(learning_rate):
        yield _lost(keys, "learning_rate", f"{learning_rate.text} is text to YAML 1.1; a number to Axolotl by a cast")


def _yaml_1_1_text(node: Node) -> bool:
    """`2e-5` has no dot: YAML 1.1 reads it as text."""
    text = node.text or ""
    return isinstance(node.value, float) and "e" in text.lower() and "." not in text


def _lost(keys: dict[str, Node], key: str, message: str) -> Lost:
    return Lost(key, keys[key].origin.line, message)


def _kept(tree: Node, lost: list[Lost]) -> Node:
    """The tree without what Axolotl drops; a slip whose meaning is plain gets its right name."""
    known = {*Config.model_fields, *axolotl.KEYS}
    keys = _known_only(tree.value, known, (), lost)
    for name, node in list(keys.items()):
        rule = axolotl.KEYS.get(name)
        if isinstance(rule, Lookalike) and rule.meant not in keys:
            lost.append(Lost(name, node.origin.line, f"dropped in silence; written as {rule.meant} now"))
            keys[rule.meant] = keys.pop(name)
        elif isinstance(rule, Refused) and rule.ignored is axolotl.UNKNOWN_TO_AXOLOTL and not asks_nothing(node):
            lost.append(Lost(name, node.origin.line, "dropped in silence; left out"))
            del keys[name]
    for name in ("datasets", "test_datasets"):
        if name in keys and isinstance(keys[name].value, list):
            rows = [_kept_row(row, (name, index), lost) for index, row in enumerate(keys[name].value)]
            keys[name] = replace(keys[name], value=rows)
    return replace(tree, value=keys)


def _kept_row(row: Node, place: KeyPath, lost: list[Lost]) -> Node:
    if not row.is_mapping:
        return row
    keys = _known_only(row.value, {*Dataset.model_fields, *axolotl.DATASET_KEYS}, place, lost)
    kind = keys.get("type")
    if kind is not None and kind.is_mapping:
        inside = _known_only(kind.value, set(PromptFormat.model_fields), (*place, "type"), lost)
        keys["type"] = replace(kind, value=inside)
    return replace(row, value=keys)


def _known_only(keys: dict[str, Node], known: set[str], place: KeyPath, lost: list[Lost]) -> dict[str, Node]:
    for name, node in keys.items():
        if name not in known:
            meant = nearest(name, known)
            hint = f" (did you mean {meant}?)" if meant else ""
            lost.append(Lost(dotted((*place, name)), node.origin.line, f"dropped in silence; left out{hint}"))
    return {name: node for name, node in keys.items() if name in known}


def _format_never_used(tree: Node) -> Iterator[str]:
    """`format` is for rows with an input; a file that names no input column seldom has one."""
    rows = tree.value.get("datasets")
    for index, row in enumerate(rows.value if rows is not None and isinstance(rows.value, list) else []):
        kind = row.value.get("type") if row.is_mapping else None
        if kind is None or not kind.is_mapping or "format" not in kind.value or "field_input" in kind.value:
            continue
        said, without = kind.value["format"], kind.value.get("no_input_format")
        if without is None or without.value != said.value:
            key = f"datasets[{index}].type.format"
            yield f"{said.origin.text()}: {key} is for rows that have an `input`; the others use no_input_format"
