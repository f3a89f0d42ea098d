"""`base_model` → ModelFacts: a folder, the shipped catalogue, the local cache, and only then the network."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

from dtrain import assets
from dtrain.errors import BadInput
from dtrain.models.catalogue import catalogued, nearest_names
from dtrain.models.facts import ModelFacts
from dtrain.models.read import facts_from_config

TIMEOUT_SECONDS = 10.0
LARGEST_CONFIG_BYTES = 4 * 2**20
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def load_facts(
    base_model: str, *, revision: str | None = None, config_dir: Path | None = None, offline: bool | None = None
) -> ModelFacts:
    """Facts of the model a config names.

    In this order: a folder with config.json (from the working directory, from `config_dir`, shipped with dtrain),
    the catalogue, the Hugging Face cache, the hub. Names in the catalogue never touch the network; a `revision`
    other than main skips the catalogue. `offline` None means what `HF_HUB_OFFLINE` says. Raises BadInput.
    """
    folder = model_folder(base_model, config_dir)
    if folder is not None:
        return _from_file(folder / "config.json", base_model)
    if not HUB_NAME.fullmatch(base_model):
        raise _no_such_folder(base_model, config_dir)
    config = catalogued(base_model) if revision in (None, "main") else None
    if config is not None:
        return facts_from_config(config, base_model, "dtrain's catalogue")
    cached = cached_config(base_model, revision or "main")
    if cached is not None:
        return _from_file(cached, base_model)
    if _offline() if offline is None else offline:
        raise _unreachable(base_model, "HF_HUB_OFFLINE is set")
    quoted = urllib.parse.quote(revision or "main", safe="")
    url = f"{_endpoint()}/{base_model}/resolve/{quoted}/config.json"
    return facts_from_config(_parse(_download(base_model, url), url), base_model, url)


def _from_file(path: Path, name: str) -> ModelFacts:
    return facts_from_config(_parse(_read(path), str(path)), name, str(path))


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
    near = nearest_names(base_model)
    return BadInput(
        "this folder has no config.json" if exists else "there is no such folder, and it is no hub name either",
        key="base_model",
        value=base_model,
        allowed="a folder with config.json, or a hub name such as TinyLlama/TinyLlama_v1.1",
        fix=f"did you mean {near[0]}?"
        if near
        else "paths are taken from the working directory and from the YAML's folder",
    )


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


def cached_config(name: str, revision: str) -> Path | None:
    """config.json in the local Hugging Face cache (`models--ORG--NAME/snapshots/COMMIT`), or None."""
    folder = _cache() / f"models--{name.replace('/', '--')}"
    try:
        reference = folder / "refs" / revision
        commit = reference.read_text().strip() if reference.is_file() else revision
        path = folder / "snapshots" / commit / "config.json"
        return path if path.is_file() else None
    except (OSError, ValueError):
        return None


def _home() -> Path:
    told = os.environ.get("HF_HOME")
    if told:
        return Path(told).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "huggingface"


def _cache() -> Path:
    told = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(told).expanduser() if told else _home() / "hub"


# --- the network --------------------------------------------------------------------------------------------------


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def _offline() -> bool:
    said = [os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")]
    return any(word in ("1", "ON", "YES", "TRUE") for word in said)


def _token() -> str | None:
    """`HF_TOKEN`, else the file that `hf auth login` wrote."""
    told = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if told:
        return told.strip()
    path = Path(os.environ.get("HF_TOKEN_PATH") or _home() / "token")
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _download(name: str, url: str) -> bytes:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "dtrain"})
        token = _token()
        if token:  # not sent along a redirect to another host
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            content: bytes = answer.read(LARGEST_CONFIG_BYTES)
            return content
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(name, url, error.code, error.headers.get("X-Error-Code") or "") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise _unreachable(name, str(reason)) from error


def _refused(name: str, url: str, status: int, code: str) -> BadInput:
    """The hub's answer in words. It says 401 for a repository that does not exist, too, when no token is sent."""
    page = url.split("/resolve/", 1)[0]
    near = nearest_names(name)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    if code == "GatedRepo" or status == 403:
        message, fix = "this model is gated", f"accept its licence at {page}, then `hf auth login` or export HF_TOKEN=…"
    elif status == 401:
        message = "the hub does not show this model: it does not exist, or it is private or gated"
        fix = f"{meant}For a gated one: accept its licence at {page}, then `hf auth login` or export HF_TOKEN=…"
    elif code == "RevisionNotFound":
        message, fix = "the hub has this model, but not this revision", f"look at {page}/commits/main"
    elif code == "EntryNotFound":
        message, fix = (
            "this repository on the hub has no config.json, so it is no transformers model",
            f"look at {page}",
        )
    elif status == 404:
        message, fix = "the hub does not know this model", f"{meant}Names are ORGANISATION/MODEL"
    else:
        message, fix = f"the hub answered {status}", "try again later, or point base_model at a folder with config.json"
    return BadInput(message, key="base_model", value=name, fix=fix)


def _unreachable(name: str, reason: str) -> BadInput:
    near = nearest_names(name)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return BadInput(
        f"not in dtrain's catalogue nor in the local cache, and the hub cannot be asked: {reason}",
        key="base_model",
        value=name,
        fix=f"{meant}Or put its config.json into a folder and name that folder as base_model",
    )
