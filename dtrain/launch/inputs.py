"""Is the data there that a run names? Asked before anything is written, sent or submitted."""

from __future__ import annotations

import os
from collections.abc import Iterator

from dtrain.config.find import DATA_ENDINGS, find_file, refuse_missing_file
from dtrain.config.origins import Loaded
from dtrain.config.schema import Dataset
from dtrain.errors import BadInput


def missing_data(loaded: Loaded, elsewhere: bool) -> list[BadInput]:
    """An error for each file of `datasets` and `test_datasets` that is not here, at its line.

    A name may be the hub's; with `elsewhere` a whole path may be the other machine's, which its launcher asks.
    """
    found = []
    for key in ("datasets", "test_datasets"):
        for number, dataset in enumerate(getattr(loaded.config, key) or []):
            found += list(_missing(dataset, loaded, f"{key}[{number}]", elsewhere))
    return found


WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
"""What transformers loads a model from."""


def missing_weights(loaded: Loaded) -> list[BadInput]:
    """An error for a `base_model` folder that is enough to plan, and holds nothing to train on."""
    config = loaded.config
    folder = find_file(config.base_model, loaded.file)
    if config.reinit_weights or folder is None or not folder.is_dir() or any(map(list, map(folder.glob, WEIGHTS))):
        return []
    fix = "reinit_weights: true starts from random weights; or name a folder with the model's weights"
    error = BadInput("there are no weights in this folder", key="base_model", value=config.base_model, fix=fix)
    return [_at_its_line(error, loaded, "base_model")]


def _missing(dataset: Dataset, loaded: Loaded, where: str, elsewhere: bool) -> Iterator[BadInput]:
    files = [dataset.data_files] if isinstance(dataset.data_files, str) else list(dataset.data_files or [])
    names = [(name, f"{where}.data_files") for name in files if not set(name) & set("*?[")]
    if not (files and dataset.path in DATA_ENDINGS.values()):  # `path: json` says what the files hold
        names = [(dataset.path, f"{where}.path")]
    for name, key in names:
        if find_file(name, loaded.file) is not None or (elsewhere and os.path.isabs(name)):
            continue
        try:
            refuse_missing_file(name, loaded.file.parent if loaded.file else None, key)
        except BadInput as error:
            yield _at_its_line(error, loaded, key)


def _at_its_line(error: BadInput, loaded: Loaded, key: str) -> BadInput:
    origin = loaded.origin(key)
    error.file, error.line = origin.file, origin.line
    return error
