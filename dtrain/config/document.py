"""The schema for editors and for people. `python -m dtrain.config.document` prints docs/config.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from dtrain.config.alias import Alias, Harmless, Lookalike, Moved, Ours, Refused, Rule, Switch, Table
from dtrain.config.axolotl import DATASET_KEYS, KEYS
from dtrain.config.schema import Config
from dtrain.config.validate import sections


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a config file: our keys, their other spellings, and what is read and left out."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "dtrain"
    schema["schema_version"] = 1  # dtrain's, as in all it prints; to JSON Schema a word without meaning
    schema["properties"] |= _other_names(KEYS, schema["properties"])
    dataset = schema["$defs"]["Dataset"]["properties"]
    dataset |= _other_names(DATASET_KEYS, dataset)
    return schema


def _other_names(table: Table, ours: Mapping[str, Any]) -> dict[str, Any]:
    found = ((name, _property(name, rule, ours)) for name, rule in table.items())
    return {name: schema for name, schema in found if schema is not None}


def _property(name: str, rule: Rule, ours: Mapping[str, Any]) -> dict[str, Any] | None:
    match rule:
        case Alias(to, values):
            meant = {key: value for key, value in ours.get(to, {}).items() if key not in ("default", "description")}
            wider = {"anyOf": [meant, {"enum": [*values]}]} if values else meant
            return {**wider, "description": f"Another name of `{to}`.", "deprecated": True}
        case Switch(to, value):
            return {"type": ["boolean", "null"], "description": f"The same as `{to}: {value}`.", "deprecated": True}
        case Ours(values):
            written = ours[name]
            kept = {key: written[key] for key in ("description", "default") if key in written}
            plain = {key: value for key, value in written.items() if key not in kept}
            return {**kept, "anyOf": [plain, {"enum": [*values]}]}
        case Moved(_, to) if name not in ours:
            return {"description": f"Axolotl's; becomes {to}.", "deprecated": True}
        case Harmless(why):
            return {"description": f"Read and left out: {why}.", "deprecated": True}
    return None


# --- docs/config.md -----------------------------------------------------------------------------------------------

_HEAD = """# The config file

Made by `python -m dtrain.config.document`; a test keeps it true. Names are Axolotl's where Axolotl has one.
`dtrain config show FILE` prints each value and where it was said, `dtrain config check FILE` every error at once,
`dtrain config schema` the JSON Schema for editors. A key that is not here is an error; null means not said.
"""


def markdown() -> str:
    """docs/config.md: every key, then every other name and what becomes of it."""
    parts = [_HEAD]
    for place, section in sections():
        parts += [f"## {place or 'Top level'}\n", _keys_of(section)]
    parts += ["## Other names, top level\n", _rules_of(KEYS), "## Other names, in a dataset\n", _rules_of(DATASET_KEYS)]
    return "\n".join(parts)


def _keys_of(section: type[BaseModel]) -> str:
    lines = ["| key | allowed | default | |", "|---|---|---|---|"]
    properties = section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        default = "required" if field.is_required() else f"`{json.dumps(properties[name].get('default'))}`"
        default = "" if default == "`null`" else default
        lines.append(
            f"| `{name}` | {_cell(_allowed(properties[name]))} | {default} | {_cell(field.description or '')} |"
        )
    return "\n".join(lines) + "\n"


def _allowed(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(word for one in schema["anyOf"] if (word := _allowed(one)) != "null")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        return f"list of {_allowed(schema.get('items', {}))}"
    word = _WORDS.get(str(schema.get("type", "")), str(schema.get("type") or "a section"))
    return word + "".join(f" {sign} {schema[limit]:g}" for limit, sign in _SIGNS.items() if limit in schema)


_WORDS = {"integer": "whole number", "string": "text", "boolean": "`true`, `false`", "object": "a mapping"}
_SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _rules_of(table: Table) -> str:
    grouped: dict[str, list[str]] = {}
    for name, rule in table.items():
        grouped.setdefault(_in_words(rule), []).append(f"`{name}`")
    lines = ["| key | what becomes of it |", "|---|---|"]
    lines += [f"| {', '.join(names)} | {_cell(words)} |" for words, names in grouped.items()]
    return "\n".join(lines) + "\n"


def _in_words(rule: Rule) -> str:
    match rule:
        case Alias(to, values, note):
            return "; ".join([f"`{to}`", *_pairs(values), *([note] if note else [])])
        case Switch(to, value, note):
            return f"true is `{to}: {value}`" + (f"; {note}" if note else "")
        case Ours(values):
            return "our key; " + "; ".join(_pairs(values))
        case Moved(_, to):
            return f"becomes {to}"
        case Harmless(why):
            return f"a note, and left out: {why}"
        case Refused(ignored, instead):
            return f"an error unless empty or false: had it been ignored, {ignored}; instead: {instead}"
        case Lookalike(meant):
            return f"an error: did you mean `{meant}`?"


def _pairs(values: Mapping[Any, Any]) -> Iterator[str]:
    for said, meant in values.items():
        yield f"{json.dumps(said)} is {'not said' if meant is None else json.dumps(meant)}"


if __name__ == "__main__":
    print(markdown(), end="")
