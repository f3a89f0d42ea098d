"""From an entry of `datasets` to its rows: which files, which split, which part."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dtrain.config.find import DATA_ENDINGS, find_file, refuse_missing_file
from dtrain.config.schema import Dataset
from dtrain.data import hub
from dtrain.data.sources import Selected, Source, joined, open_json
from dtrain.errors import BadInput

_SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_SLICE = re.compile(r"(?P<split>[\w.-]+)(\[(?P<first>-?\d+%?)?:(?P<last>-?\d+%?)?\])?")


def open_source(dataset: Dataset, config_dir: Path | None, key: str) -> Source:
    """The rows of one entry. `key` is its place in the config (`datasets[0]`). BadInput for whatever cannot be read."""
    splits = _splits(dataset, config_dir, key)
    source = joined([_cut(splits, part.strip(), f"{key}.split") for part in (dataset.split or "train").split("+")])
    if not len(source):
        raise BadInput("there are no rows in it", file=_name(source, dataset), key=f"{key}.path")
    if dataset.shards is None:
        return source
    return Selected(source, np.arange(-(-len(source) // dataset.shards), dtype=np.int64))


def _splits(dataset: Dataset, config_dir: Path | None, key: str) -> Mapping[str, Source]:
    patterns = [dataset.data_files] if isinstance(dataset.data_files, str) else list(dataset.data_files or [])
    found = _find(dataset.path, config_dir)
    if patterns and dataset.path in set(DATA_ENDINGS.values()) and found is None:  # `path: json`, as in Axolotl
        files = [file for pattern in patterns for file in _matching(Path(), pattern, config_dir, key)]
        return {"train": _files(files, dataset.path, key)}
    if found is None:
        refuse_missing_file(dataset.path, config_dir, f"{key}.path")
        return hub.open_hub(dataset.path, dataset.name, patterns, dataset.revision, key)
    if found.is_file():
        return {"train": _files([found], dataset.ds_type, key)}
    if patterns:
        files = [file for pattern in patterns for file in _matching(found, pattern, config_dir, key)]
        return {"train": _files(files, dataset.ds_type, key)}
    return _folder(found, dataset.ds_type, key)


def _find(said: str, config_dir: Path | None) -> Path | None:
    return find_file(said, config_dir / "config.yaml" if config_dir is not None else None)


def _matching(folder: Path, pattern: str, config_dir: Path | None, key: str) -> list[Path]:
    if any(sign in pattern for sign in "*?["):
        root, rest = (Path("/"), pattern.lstrip("/")) if pattern.startswith("/") else (folder, pattern)
        bases = [root] if root != Path() or config_dir is None else [root, config_dir]
        found: list[Path] = next((files for base in bases if (files := sorted(base.glob(rest)))), [])
    else:
        inside = folder / pattern
        one = inside if inside.is_file() else (_find(pattern, config_dir) if folder == Path() else None)
        found = [one] if one is not None else []
    if not found:
        here = f"in {folder}: {', '.join(sorted(file.name for file in folder.iterdir())[:10])}" if folder.name else None
        raise BadInput("no such file", key=f"{key}.data_files", value=pattern, allowed=here)
    return found


def _files(files: list[Path], said_kind: str | None, key: str) -> Source:
    kinds = {said_kind or _kind(file) for file in files}
    unknown = next((file for file in files if said_kind is None and _kind(file) is None), None)
    if unknown is not None:
        allowed = "json, jsonl, parquet, csv, tsv, arrow"
        words = "the ending does not tell what the file holds"
        lines = 'write one object a line: {"text": "…"}' if unknown.suffix == ".txt" else "say it: ds_type: json"
        raise BadInput(words, file=str(unknown), key=f"{key}.path", allowed=allowed, fix=lines)
    if len(kinds) > 1:
        words = f"files of several kinds ({', '.join(sorted(str(kind) for kind in kinds))}) in one dataset"
        raise BadInput(words, file=str(files[0].parent), key=f"{key}.path", fix="name them one by one in `datasets`")
    [kind] = kinds
    if kind == "json" and all(file.suffix not in (".gz", ".zst") for file in files):
        return joined([open_json(file) for file in files])
    empty = next((file for file in files if file.stat().st_size == 0), None)
    if empty is not None:
        raise BadInput("the file is empty", file=str(empty), key=f"{key}.path")
    return hub.open_files(str(kind), files, key)


def _kind(file: Path) -> str | None:
    endings = [suffix for suffix in file.suffixes if suffix not in (".gz", ".zst")]
    return DATA_ENDINGS.get(endings[-1].lower()) if endings else None


def _folder(folder: Path, said_kind: str | None, key: str) -> Mapping[str, Source]:
    """The data files of a folder, by the split their names tell; names that tell nothing are `train`."""
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return hub.open_saved(folder)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and _kind(file) and not _hidden(file, folder)]
    if not files:
        inside = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
        fix = "name a file, or a folder with json, jsonl, parquet or csv files"
        raise BadInput(f"no data files in this folder; it holds {inside}", file=str(folder), key=f"{key}.path", fix=fix)
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file), []).append(file)
    return {split: _files(group, said_kind, key) for split, group in by_split.items()}


def _hidden(file: Path, folder: Path) -> bool:
    return file.name in _METADATA or any(part.startswith(".") for part in file.relative_to(folder).parts)


def _split_of(file: Path) -> str:
    words = set(re.split(r"[\W_\d]+", file.name.lower()))
    return next((split for split, names in _SPLIT_WORDS.items() if words & set(names)), "train")


def _cut(splits: Mapping[str, Source], said: str, key: str) -> Source:
    """`train`, `train[:100]`, `test[10%:20%]`."""
    match = _SLICE.fullmatch(said)
    if match is None:
        raise BadInput("not a split", key=key, value=said, allowed="train, train[:100], train[10%:20%], train+test")
    if match["split"] not in splits:
        near = difflib.get_close_matches(match["split"], splits, n=1)
        fix = f"split: {(near or sorted(splits))[0]}"
        raise BadInput("there is no such split", key=key, value=said, allowed=", ".join(sorted(splits)), fix=fix)
    source = splits[match["split"]]
    if not match[2]:
        return source
    first, last, _ = slice(_place(match["first"], source), _place(match["last"], source)).indices(len(source))
    return Selected(source, np.arange(first, max(first, last), dtype=np.int64))


def _place(said: str | None, source: Source) -> int | None:
    if said is None:
        return None
    return round(int(said[:-1]) / 100 * len(source)) if said.endswith("%") else int(said)


def _name(source: Source, dataset: Dataset) -> str:
    return str(getattr(source, "file", getattr(source, "name", dataset.path)))
