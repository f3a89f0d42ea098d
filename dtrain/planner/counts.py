"""How much data there is: exact where the data room has counted, else estimated from files without reading tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dtrain.config.load import find_file, load
from dtrain.config.schema import Config, Dataset
from dtrain.files import read_json
from dtrain.paths import RunPaths

BYTES_PER_TOKEN = 4
"""English text in a 32k to 150k vocabulary: 3.5 to 4.6 bytes a token."""
PACKED_FILL = 0.98
"""Real tokens per packed slot that an estimate counts on; the packer itself reaches 0.999 on long data."""
ASSUMED_ROWS = 10_000
"""Rows of a hub dataset that cannot be asked from here. Always said loudly."""
LARGEST_READ_BYTES = 64 * 2**20
"""A JSON list larger than this is not parsed only to count its rows."""
USUAL_ROW_BYTES = 1500
"""A row of instruction data, where only a file's size is known (parquet holds about a third of it)."""
PARQUET_EXPANSION = 2.5
"""Text bytes per byte of a compressed parquet file."""

TEXT_ENDINGS = {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt"}


@dataclass(frozen=True)
class DataCounts:
    """One epoch of the training data, after filtering and packing."""

    rows: int
    tokens: int
    trained_tokens: int
    """Positions with a loss; equal to `tokens` where masks are not known."""
    slots: int
    """Sequences per epoch: rows, or packed rows when packing."""
    eval_rows: int = 0
    exact: bool = False
    source: str = ""
    """What was counted, or what was assumed, in words."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileCounts:
    """Rows and text bytes of one source."""

    rows: int
    text_bytes: float


def estimate_counts(config: Config, config_file: Path | None) -> DataCounts:
    """Rows from the files' lines, tokens from their bytes. What cannot be reached is assumed, and a warning says so."""
    found: list[FileCounts] = []
    warnings: list[str] = []
    for dataset in config.datasets:
        counted = _counted(dataset, config_file)
        if counted is None:
            counted = _assumed(config)
            warnings.append(_assumption(dataset, counted, config))
        found.append(_sliced(dataset, counted))
    rows = sum(one.rows for one in found)
    text = sum(one.text_bytes for one in found)
    source = f"estimated: {rows:,} rows, tokens as bytes / {BYTES_PER_TOKEN}" if not warnings else "assumed"
    return _counts(config, rows, text / BYTES_PER_TOKEN, source, tuple(warnings))


def _counts(config: Config, rows: int, tokens: float, source: str, warnings: tuple[str, ...]) -> DataCounts:
    held_out = _held_out(config, rows)
    kept = max(1, rows - held_out)
    per_row = min(tokens / max(1, rows), config.sequence_len)
    kept_tokens = max(1, round(kept * per_row))
    full = config.sequence_len * PACKED_FILL
    slots = max(1, math.ceil(kept_tokens / full)) if config.sample_packing else kept
    return DataCounts(kept, kept_tokens, kept_tokens, slots, held_out, False, source, warnings)


def _held_out(config: Config, rows: int) -> int:
    if config.test_datasets:
        return 0
    size = config.val_set_size
    return min(rows - 1, round(size * rows) if size < 1 else round(size)) if rows > 1 else 0


# --- what a run has counted ---------------------------------------------------------------------------------------

DATA_KEYS = (
    "base_model", "tokenizer_type", "tokenizer_config", "train_tokenizer", "special_tokens", "tokens", "chat_template",
    "chat_template_jinja", "datasets", "test_datasets", "val_set_size", "sequence_len", "train_on_inputs",
    "excess_length_strategy", "min_sample_len", "dataset_exact_deduplication", "seed",
)  # fmt: skip
"""What decides which rows and tokens there are."""


def counted_before(config: Config) -> DataCounts | None:
    """The counts of an earlier run in the same `output_dir` on the same data; None where there is none.

    Exact for rows that are not packed. Packed slots follow from the tokens: the packer fills 0.999 of a slot.
    """
    if config.output_dir is None:
        return None
    paths = RunPaths(Path(config.output_dir))
    if not (paths.data.is_file() and paths.config.is_file()):
        return None
    earlier = load(paths.config).config
    if any(getattr(earlier, key) != getattr(config, key) for key in DATA_KEYS):
        return None
    told = read_json(paths.data)
    train, held_out = told["train"], told["eval"] or {"rows": 0}
    packed = math.ceil(train["tokens"] / (0.999 * config.sequence_len))
    return DataCounts(
        rows=train["rows"],
        tokens=train["tokens"],
        trained_tokens=train["trained_tokens"],
        slots=packed if config.sample_packing else train["rows"],
        eval_rows=held_out["rows"],
        exact=not config.sample_packing,
        source=f"counted by the run in {config.output_dir}",
    )


# --- files --------------------------------------------------------------------------------------------------------


def _counted(dataset: Dataset, config_file: Path | None) -> FileCounts | None:
    """None where the path is no local file or folder."""
    place = find_file(dataset.path, config_file)
    if place is None:
        return None
    files = list(_files(place, dataset))
    if not files:
        return None
    each = [_count_file(file) for file in files]
    return FileCounts(sum(one.rows for one in each), sum(one.text_bytes for one in each))


def _files(place: Path, dataset: Dataset) -> Iterator[Path]:
    if place.is_file():
        yield place
        return
    named = [dataset.data_files] if isinstance(dataset.data_files, str) else dataset.data_files
    patterns = named or ["**/*"]
    for pattern in patterns:
        yield from (one for one in sorted(place.glob(pattern)) if one.is_file() and one.suffix in TEXT_ENDINGS)


def _count_file(file: Path) -> FileCounts:
    size = file.stat().st_size
    if file.suffix in (".parquet", ".arrow"):
        text = size * (PARQUET_EXPANSION if file.suffix == ".parquet" else 1)
        return FileCounts(max(1, round(text / USUAL_ROW_BYTES)), text)
    if file.suffix == ".json" and (rows := _rows_of_json(file, size)) is not None:
        return FileCounts(rows, size)
    lines = _lines(file)
    return FileCounts(max(0, lines - 1) if file.suffix in (".csv", ".tsv") else lines, size)


def _rows_of_json(file: Path, size: int) -> int | None:
    """Rows of a JSON list; None where the file holds one object per line, or is too large to parse for this."""
    with file.open("rb") as stream:
        if stream.read(64).lstrip()[:1] != b"[":
            return None
    if size > LARGEST_READ_BYTES:
        return max(1, size // USUAL_ROW_BYTES)
    try:
        document = json.loads(file.read_bytes())
    except ValueError:
        return max(1, size // USUAL_ROW_BYTES)  # the data room tells what is wrong in it, with the place
    return len(document)


def _lines(file: Path) -> int:
    """Lines that hold something; the last one needs no newline."""
    count, tail = 0, b"\n"
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            count += block.count(b"\n")
            tail = block[-1:]
    return count + (tail != b"\n")


def _sliced(dataset: Dataset, counted: FileCounts) -> FileCounts:
    share = 1 / dataset.shards if dataset.shards else 1.0
    return FileCounts(max(1, round(counted.rows * share)), counted.text_bytes * share)


# --- what cannot be asked -----------------------------------------------------------------------------------------


def _assumed(config: Config) -> FileCounts:
    return FileCounts(ASSUMED_ROWS, ASSUMED_ROWS * config.sequence_len / 2 * BYTES_PER_TOKEN)


def _assumption(dataset: Dataset, counted: FileCounts, config: Config) -> str:
    return (
        f"{dataset.path} is not on this machine: steps, hours and cost ASSUME {counted.rows:,} rows of "
        f"{config.sequence_len // 2} tokens (say max_steps, or use a local file, to know)"
    )
