"""Published runs that took no part in fitting (tests/measured/published_unseen.json), planned as a person would plan
them: each row is a config file and a profile."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from benchmarks.published import MEASURED
from dtrain.config.load import as_yaml, loads
from dtrain.hardware.profiles import Profile, resolve_profile
from dtrain.models.facts import ModelFacts
from dtrain.models.hub import load_facts
from dtrain.models.read import facts_from_config
from dtrain.planner.plan import Plan, make_plan

NO_DATA = [{"path": "no/data", "type": "alpaca"}]


@lru_cache(maxsize=1)
def unseen() -> tuple[Mapping[str, Any], ...]:
    return _rows("published_unseen")


@lru_cache(maxsize=1)
def second_batch() -> tuple[Mapping[str, Any], ...]:
    """Tokens a second only, each row with what we told of it at first look."""
    return _rows("published_throughput_second")


@lru_cache(maxsize=1)
def second_peaks() -> tuple[Mapping[str, Any], ...]:
    """Peak memory only, likewise; None where we could not plan a row at first look."""
    return _rows("published_memory_second")


def _rows(name: str) -> tuple[Mapping[str, Any], ...]:
    return tuple(json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8")))


def plan_of(row: Mapping[str, Any]) -> Plan:
    facts = facts_of(row)
    config = {"base_model": facts.name, "datasets": NO_DATA, **row["said"]}
    return make_plan(loads(as_yaml(config), row["id"]), profile_of(row), facts)


def facts_of(row: Mapping[str, Any]) -> ModelFacts:
    """By a name of the catalogue, or from a config of the row's own."""
    model = row["base_model"]
    if isinstance(model, str):
        return load_facts(model, revision=None, config_dir=None)
    return facts_from_config(model["config"], model["name"], row["id"])


def profile_of(row: Mapping[str, Any]) -> Profile:
    """By name, or from a profile file of the row's own."""
    profile = row["profile"]
    if isinstance(profile, str):
        return resolve_profile(profile)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "profile.yaml"
        file.write_text(yaml.safe_dump(profile), encoding="utf-8")
        return resolve_profile(str(file))


def source_of(row: Mapping[str, Any]) -> str:
    """The repository's own name."""
    return str(row["source"]["repo"]).rpartition("/")[2]
