"""`launchers: {colab: {…}}`, and which of dtrain's profiles Colab has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dtrain.errors import BadInput
from dtrain.launch import secrets

WHERE = "launchers.colab"


@dataclass(frozen=True)
class Runtime:
    """A choice under Runtime → Change runtime type."""

    name: str
    gpu_type: str
    """As a notebook's metadata says it."""


RUNTIMES: Mapping[str, Runtime] = {
    "t4": Runtime("T4 GPU", "T4"),
    "l4": Runtime("L4 GPU", "L4"),
    "a100-40gb": Runtime("A100 GPU", "A100"),
    "a100-80gb": Runtime("A100 GPU", "A100"),
    "cpu": Runtime("CPU", ""),
}
"""Catalogue name → what to choose. Which A100 one gets is Colab's choice: the notebook looks at its memory."""


@dataclass(frozen=True)
class ColabOptions:
    notebook: str | None = None
    """Where the notebook is written; not said: `colab.ipynb` in the run's output folder."""
    drive_folder: str = "dtrain"
    """Under MyDrive: the run's folder lies there, and inputs too large for the notebook."""
    drive: str | None = None
    """That same folder as this machine sees it (Google Drive for desktop): then status, logs and fetch can read it."""
    secrets: tuple[str, ...] = secrets.NAMES
    """Names among the notebook's own secrets that the run may need."""


def read_options(told: Mapping[str, Any]) -> ColabOptions:
    """Closed: an unknown key, or a value that cannot be meant, is an error that says what is allowed."""
    given = {key: value for key, value in told.items() if value is not None}
    for key, value in given.items():
        if key not in _OPTIONS:
            raise BadInput("Colab has no such option", key=f"{WHERE}.{key}", value=value, allowed=", ".join(_OPTIONS))
        accepts, allowed = _OPTIONS[key]
        if not accepts(value):
            raise BadInput("not a value for this option", key=f"{WHERE}.{key}", value=value, allowed=allowed)
    if "secrets" in given:
        given["secrets"] = tuple(given["secrets"])
    return ColabOptions(**given)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def _is_folder_name(value: Any) -> bool:
    return _is_text(value) and not value.startswith("/") and ".." not in value.split("/")


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) and one.isidentifier() for one in value)


_OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "notebook": (lambda value: _is_text(value) and value.endswith(".ipynb"), "a path that ends in .ipynb"),
    "drive_folder": (_is_folder_name, "a folder's name under MyDrive"),
    "drive": (_is_text, "a folder on this machine"),
    "secrets": (_is_names, "[WANDB_API_KEY, HF_TOKEN]: names of secrets"),
}
