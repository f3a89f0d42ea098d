"""Typed look-ups in a config.json: a missing or nonsensical figure is a BadInput with file and key, never a crash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dtrain.errors import BadInput

LARGEST = 10**8
"""No width, vocabulary or count of today's models comes near it; more is a slip of the keyboard."""
MOST_LAYERS = 10_000


@cache
def family_defaults() -> Mapping[str, Mapping[str, Any]]:
    """What transformers 5.23 fills in per `model_type` for an absent key (tests compare with its classes)."""
    document: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("defaults.json").read_text("utf-8"))
    return document


class Figures:
    """One model's config.json. Keys are looked up under all their names, then in the family's defaults."""

    def __init__(self, config: Mapping[str, Any], family: str, name: str, source: str) -> None:
        self.config = config
        self.family = family
        self.name = name
        self.source = source
        self._defaults = family_defaults().get(family, {})

    def raw(self, *names: str) -> Any:
        """The value under the first of these names that the config has; a written null stays None. Else the default."""
        said = [self.config[name] for name in names if name in self.config]
        if said:
            return next((value for value in said if value is not None), None)
        return next((self._defaults[name] for name in names if name in self._defaults), None)

    def count(self, *names: str, least: int = 1, most: int = LARGEST, otherwise: int | None = None) -> int:
        """A whole number from `least` to `most`. `otherwise` is the family's rule for an absent key."""
        value = self.raw(*names)
        if value is None and otherwise is not None:
            return otherwise
        if value is None:
            raise self.wrong(names[0], None, f"`{names[0]}` is missing", f"a whole number from {least}")
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(
                self.key(*names), value, "this is no figure of a model", f"whole numbers {least} to {most}"
            )
        return value

    def stated(self, *names: str, most: int = LARGEST) -> int:
        """Like `count`, but the file itself must say it: a model without its own width and depth is no model."""
        if all(self.config.get(name) is None for name in names):
            raise self.wrong(names[0], None, f"`{names[0]}` is missing", f"a whole number from 1 to {most}")
        return self.count(*names, most=most)

    def maybe(self, *names: str) -> int | None:
        """A whole number, or None where the config says null, nothing or (as some do for windows) 0 or less."""
        value = self.raw(*names)
        if isinstance(value, int) and not isinstance(value, bool) and value <= 0:
            return None
        return None if value is None else self.count(*names)

    def flag(self, *names: str, otherwise: bool = False) -> bool:
        value = self.raw(*names)
        if value is None:
            return otherwise
        if not isinstance(value, bool):
            raise self.wrong(self.key(*names), value, "this is neither true nor false", "true, false")
        return value

    def text(self, *names: str, otherwise: str = "") -> str:
        value = self.raw(*names)
        if value is None:
            return otherwise
        if not isinstance(value, str):
            raise self.wrong(self.key(*names), value, "this is no text", "a text")
        return value

    def words(self, name: str, length: int) -> list[str] | None:
        """One word per layer (`layer_types`), or None where the config has none."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value) or len(value) != length:
            raise self.wrong(name, value, "this is not one word per layer", f"a list of {length} words")
        return value

    def part(self, name: str) -> Figures:
        """A nested object (`attn_config` of MPT) as figures of the same model; absent is empty."""
        value = self.config.get(name) or {}
        if not isinstance(value, Mapping):
            raise self.wrong(name, value, "this is no object of keys", "an object")
        inner = Figures(value, self.family, self.name, self.source)
        inner._defaults = self._defaults.get(name, {})
        return inner

    def key(self, *names: str) -> str:
        """Which of the names the config uses."""
        return next((name for name in names if self.config.get(name) is not None), names[0])

    def wrong(self, key: str, value: Any, message: str, allowed: str) -> BadInput:
        return BadInput(
            f"{message} (model {self.name}, family {self.family})",
            file=self.source,
            key=key,
            value=value,
            allowed=allowed,
            fix=f"set `{key}` in {self.source} as the model's publisher has it",
        )
