"""What `datasets` reads for us: parquet, csv, arrow, and datasets on a hub. Its errors become ours."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dtrain.data.sources import Row, Source
from dtrain.errors import BadInput, DtrainError, PartMissing

_NETWORK_ERRORS = {
    "OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "ConnectError", "ConnectTimeout",
    "ReadTimeout", "ReadError", "NetworkError", "RemoteProtocolError", "ProxyError", "MaxRetryError", "gaierror",
    "Timeout",
}  # fmt: skip
"""Classes along an error's chain that mean the hub was not reached (httpx, requests, huggingface_hub, socket)."""


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of a `datasets.Dataset`, memory-mapped."""

    name: str
    fingerprint: str
    dataset: Any = field(repr=False)

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, rows: Sequence[int]) -> list[Row]:
        columns = self.dataset[list(rows)]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def where(self, row: int) -> tuple[str, int | None]:
        return self.name, None


def library() -> Any:
    """The `datasets` module, quiet. PartMissing when it is not installed."""
    try:
        import datasets
    except ImportError:
        raise PartMissing.of("datasets", "train", "reading data") from None
    datasets.disable_progress_bars()
    return datasets


def open_files(kind: str, files: Sequence[Path], key: str) -> Source:
    """Local parquet, csv or arrow files as one table."""
    options = {"sep": "\t"} if kind == "csv" and files[0].suffix == ".tsv" else {}
    named = [str(file) for file in files]
    try:
        table = library().load_dataset(kind, data_files={"train": named}, split="train", **options)
    except DtrainError:
        raise
    except Exception as error:
        words = f"cannot be read as {kind}: {_reason(error)}"
        raise BadInput(words, file=named[0], key=f"{key}.path", fix="check the file, or say ds_type") from error
    return Table(named[0], f"{kind}:{options}:" + "".join(_sha256(file) for file in files), table)


def open_saved(folder: Path) -> dict[str, Source]:
    """A folder written by `save_to_disk`, by split."""
    loaded = library().load_from_disk(str(folder))
    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    return {split: Table(str(folder), table._fingerprint, table) for split, table in splits.items()}


def open_hub(
    name: str, configuration: str | None, data_files: Sequence[str] | None, revision: str | None, key: str
) -> dict[str, Source]:
    """A dataset by its hub name, by split. `HF_ENDPOINT`, `HF_HUB_OFFLINE` and the local cache are `datasets`' own."""
    offline_without_network()
    datasets = library()
    try:
        loaded = datasets.load_dataset(name, configuration, data_files=data_files or None, revision=revision)
    except Exception as error:
        raise _hub_error(name, key, error) from error
    return {split: Table(name, f"{name}@{revision}:{table._fingerprint}", table) for split, table in loaded.items()}


def offline_without_network() -> None:
    """Where the hub's door cannot be reached, let its libraries use what they have: they would retry for a minute."""
    if is_offline() or any(os.environ.get(name) for name in _PROXIES) or _answers(endpoint()):
        return
    os.environ["HF_HUB_OFFLINE"] = "1"  # for what is not imported yet, and for children
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            sys.modules[name].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def is_offline() -> bool:
    return any(os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


_TRUE = ("1", "ON", "YES", "TRUE")
"""What huggingface_hub takes for true (constants.ENV_VARS_TRUE_VALUES)."""
_PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
_CONNECT_SECONDS = 5.0


def _answers(url: str) -> bool:
    parts = urlsplit(url)
    try:
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def unreachable(error: BaseException) -> bool:
    """Whether the cause of an error is a network that is not there."""
    seen: BaseException | None = error
    while seen is not None:
        if any(kind.__name__ in _NETWORK_ERRORS for kind in type(seen).__mro__):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _hub_error(name: str, key: str, error: Exception) -> BadInput:
    from datasets.exceptions import DatasetNotFoundError

    if isinstance(error, DatasetNotFoundError):
        fix = "check the name, and the access to it (hf auth login); for a local file give its path"
        return BadInput("no such dataset on the hub, and no such file here", key=f"{key}.path", value=name, fix=fix)
    if unreachable(error):
        fix = "connect, or give a local file as path; a dataset that was loaded before works with HF_HUB_OFFLINE=1"
        return BadInput("the hub cannot be reached, and this is no local file", key=f"{key}.path", value=name, fix=fix)
    return BadInput(f"the dataset cannot be loaded: {_reason(error)}", key=f"{key}.path", value=name)


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: `datasets` wraps what really happened."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
