"""A config.json from the Hugging Face hub, and what a refusal means in words."""

from __future__ import annotations

import os
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from pathlib import Path

from dtrain.errors import BadInput
from dtrain.models.cache import cache_home
from dtrain.models.catalogue import nearest_names

TIMEOUT_SECONDS = 10.0
LARGEST_CONFIG_BYTES = 4 * 2**20


def download_config(name: str, revision: str, offline: bool | None) -> tuple[str, bytes]:
    """(address, content) of a repository's config.json. Raises BadInput where the hub refuses or cannot be asked."""
    if _offline() if offline is None else offline:
        raise _unreachable(name, "working offline (HF_HUB_OFFLINE)")
    url = f"{_endpoint()}/{name}/resolve/{urllib.parse.quote(revision, safe='')}/config.json"
    return url, _fetch(name, url)


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
    path = Path(os.environ.get("HF_TOKEN_PATH") or cache_home() / "token")
    try:
        return path.read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _fetch(name: str, url: str) -> bytes:
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
    meant = f"did you mean {' or '.join(near)}? Or " if near else ""
    return BadInput(
        f"not in dtrain's catalogue nor in the local cache, and the hub cannot be asked: {reason}",
        key="base_model",
        value=name,
        fix=f"{meant}put its config.json into a folder and name that folder as base_model",
    )
