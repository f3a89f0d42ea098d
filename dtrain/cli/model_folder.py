"""A RUN as the folder its model lies in."""

from __future__ import annotations

from pathlib import Path

from dtrain.config.load import load
from dtrain.config.schema import Config
from dtrain.errors import BadInput
from dtrain.launch import registry
from dtrain.paths import RunPaths


def find_model(said: str) -> Path:
    """The model folder of a run (id, name or folder), or any folder that holds a Hugging Face model."""
    try:
        folder = Path(registry.find(said).folder)
    except BadInput:  # no run of this name: a model folder from elsewhere
        if not holds_model(Path(said)):
            raise
        folder = Path(said)
    if not holds_model(folder):
        raise BadInput(
            "there is no model here yet", file=str(folder), value=said,
            fix=f"dtrain status {said}; a stopped run goes on with `dtrain resume {said}`, and `dtrain export {said}` "
            "writes the model of its newest checkpoint",
        )  # fmt: skip
    return folder


def holds_model(folder: Path) -> bool:
    """A whole model, or an adapter that names its base."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def config_of(folder: Path) -> Config | None:
    """The config of the run that made this model; None for a model from elsewhere."""
    file = RunPaths.of(folder).config
    return load(file).config if file.is_file() else None
