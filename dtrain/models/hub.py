"""`base_model` → ModelFacts: a folder, the shipped catalogue, the local cache, and only then the network."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtrain import assets
from dtrain.errors import BadInput
from dtrain.models.cache import cached_config
from dtrain.models.catalogue import catalogued, nearest_names
from dtrain.models.facts import ModelFacts
from dtrain.models.read import facts_from_config

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def load_facts(
    base_model: str, *, revision: str | None = None, config_dir: Path | None = None, offline: bool | None = None
) -> ModelFacts:
    """Facts of the model a config names.

    In this order: a folder with config.json (from the working directory, from `config_dir`, shipped with dtrain),
    the catalogue, the Hugging Face cache, the hub. Names in the catalogue never touch the network; a `revision`
    other than main skips the catalogue. `offline` None means what `HF_HUB_OFFLINE` says. Raises BadInput.
    """
    config, source = load_config(base_model, revision=revision, config_dir=config_dir, offline=offline)
    return facts_from_config(config, base_model, source)


def load_config(
    base_model: str, *, revision: str | None = None, config_dir: Path | None = None, offline: bool | None = None
) -> tuple[Mapping[str, Any], str]:
    """The config.json that a name means, and where it lies; in the order that `load_facts` tells."""
    folder = model_folder(base_model, config_dir)
    if folder is not None:
        return _from_file(folder / "config.json")
    if not HUB_NAME.fullmatch(base_model):
        raise _no_such_folder(base_model, config_dir)
    config = catalogued(base_model) if revision in (None, "main") else None
    if config is not None:
        return config, "dtrain's catalogue"
    cached = cached_config(base_model, revision or "main")
    if cached is not None:
        return _from_file(cached)
    from dtrain.models.download import download_config  # urllib costs 0.1 s, and most names never need it

    url, content = download_config(base_model, revision or "main", offline)
    return _parse(content, url), url


def _from_file(path: Path) -> tuple[Mapping[str, Any], str]:
    return _parse(_read(path), str(path)), str(path)


def model_folder(base_model: str, config_dir: Path | None) -> Path | None:
    """The local folder a name means, if it holds a config.json."""
    folders = _candidates(base_model, config_dir)
    return next((Path(folder) for folder in folders if os.path.isfile(os.path.join(folder, "config.json"))), None)


def _candidates(base_model: str, config_dir: Path | None) -> list[str]:
    """os.path, not pathlib: it says False, and does not raise, of names that no file can have."""
    said = os.path.expanduser(base_model)
    return [said, *([os.path.join(config_dir, said)] if config_dir else []), os.path.join(assets.root(), said)]


def _no_such_folder(base_model: str, config_dir: Path | None) -> BadInput:
    exists = any(os.path.isdir(folder) for folder in _candidates(base_model, config_dir))
    near = _folders_alike(base_model, config_dir) or nearest_names(base_model)
    return BadInput(
        "this folder has no config.json" if exists else "there is no such folder, and it is no hub name either",
        key="base_model",
        value=base_model,
        allowed="a folder with config.json, or a hub name such as TinyLlama/TinyLlama_v1.1",
        fix=f"did you mean {near[0]}?"
        if near
        else "paths are taken from the working directory and from the YAML's folder",
    )


def _folders_alike(said: str, config_dir: Path | None) -> list[str]:
    """Folders with a model that stand beside the one that was said, and are called nearly so."""
    import difflib

    beside = [base / Path(said).expanduser().parent for base in (Path(), *([config_dir] if config_dir else []))]
    found = {path.parent.name: path.parent for folder in beside for path in folder.glob("*/config.json")}
    return [str(found[name]) for name in difflib.get_close_matches(Path(said).name, found, n=1)]


# --- files --------------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}", file=str(path), key="base_model") from error


def _parse(content: bytes, source: str) -> Mapping[str, Any]:
    fix = "fetch the model's config.json again"
    try:
        config = json.loads(content)
    except json.JSONDecodeError as error:
        raise BadInput(f"this is no JSON: {error.msg}", file=source, line=error.lineno, fix=fix) from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise BadInput(f"this is no JSON: {error}", file=source, fix=fix) from error
    if not isinstance(config, dict):
        raise BadInput("a config.json holds one object", file=source, value=type(config).__name__, fix=fix)
    return config
