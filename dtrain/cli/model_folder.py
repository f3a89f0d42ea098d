"""A RUN as the folder its model lies in."""

from __future__ import annotations

from pathlib import Path

from dtrain.config.load import load
from dtrain.config.schema import Config
from dtrain.errors import BadInput
from dtrain.launch import registry
from dtrain.paths import RunPaths


def find_model(said: str) -> Path:
    """The model folder of a run (id, name or folder): what it trained, else what `dtrain export` last wrote of it; or
    any folder that holds a Hugging Face model."""
    try:
        folder = Path(registry.find(said).folder)
    except BadInput:  # no run of this name: a model folder from elsewhere
        if not holds_model(Path(said)):
            raise
        folder = Path(said)
    if not holds_model(folder):
        folder = newest_export(folder) or folder
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


def export_folder(run: Path, step: int, merged: bool) -> Path:
    """Where an export goes that names no folder."""
    return run / f"{'merged' if merged else 'export'}-{step}"


def newest_export(run: Path) -> Path | None:
    """Of the latest step that was exported beside the run."""
    found = [one for kind in ("export", "merged") for one in run.glob(f"{kind}-*") if holds_model(one)]
    return max(
        found, key=lambda one: int(tail) if (tail := one.name.rpartition("-")[2]).isdigit() else -1, default=None
    )


def config_of(folder: Path) -> Config | None:
    """The config of the run that made this model, also where it is an export beside it; None for one from elsewhere."""
    for place in (folder, folder.parent):
        file = RunPaths.of(place).config
        if file.is_file():
            return load(file).config
    return None
