"""The models dtrain knows by hub name without a network: catalogue.json, the keys of their config.json that count."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _by_name() -> Mapping[str, tuple[str, Mapping[str, Any]]]:
    """Lower-case name → (name as published, config)."""
    entries = json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))
    return {name.lower(): (name, entry["config"]) for entry in entries for name in entry["names"]}


def catalogued(name: str) -> Mapping[str, Any] | None:
    """The config of a hub name, any case; None where the catalogue does not have it."""
    found = _by_name().get(name.lower())
    return found[1] if found else None


def catalogue_names() -> list[str]:
    """Every name as its publisher spells it."""
    return sorted(name for name, _ in _by_name().values())


def nearest_names(name: str, most: int = 3) -> list[str]:
    """Catalogue names that look like this one, best first; the part after the publisher counts too."""
    wanted = name.lower()
    by_tail = {key.rpartition("/")[2]: key for key in _by_name()}
    near = difflib.get_close_matches(wanted, _by_name(), n=most, cutoff=0.6)
    tails = difflib.get_close_matches(wanted.rpartition("/")[2], by_tail, n=most, cutoff=0.6)
    keys = dict.fromkeys([*near, *(by_tail[tail] for tail in tails)])
    return [_by_name()[key][0] for key in keys][:most]
