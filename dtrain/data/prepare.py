"""Tokenise a run's data once, before any process group starts, or take what was tokenised before.

    Config ──open──▶ rows ──encode──▶ examples ──write──▶ cache entry ──▶ TokenRows, tokenizer, report

An entry is named by everything that could change it (the rows' bytes, the tokenizer, all data options, `FORMAT`) and
appears whole or not at all. `python -m dtrain.data.prepare RUN_FOLDER` does this for a run and writes its data.json.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtrain import paths
from dtrain.config.schema import Config
from dtrain.data.encode import Inputs, Part, encode_part, make_format, open_inputs
from dtrain.data.formats import RowProblem
from dtrain.data.report import DataReport, Lost, SplitCounts, Tally, first_rows
from dtrain.data.rows import RowsWriter, TokenRows, checksums
from dtrain.data.tokenizer import Encoder, blank_tokenizer, fingerprint, load_tokenizer, train_tokenizer
from dtrain.errors import BadInput, BadInputs, DtrainError, RunFailed
from dtrain.files import read_json, sync_folder, write_json
from dtrain.own_process import accepts_changes
from dtrain.paths import RunPaths

FORMAT = 1
"""Raised when the same config and rows would give other ids, labels or files."""

DATA_OPTIONS = (
    "sequence_len", "train_on_inputs", "excess_length_strategy", "min_sample_len", "train_tokenizer", "special_tokens",
    "tokens", "chat_template", "chat_template_jinja",
)  # fmt: skip
"""Keys of the config that change the tokenised rows. What only chooses rows (the held-out share, its seed, equal rows
left out) is in the fingerprint of the chosen rows."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    train: TokenRows
    eval: TokenRows | None
    tokenizer_folder: Path
    report: DataReport
    cache_folder: Path
    fingerprint: str


def quietly(_: str) -> None:
    """Says nothing."""


def prepare(
    config: Config, config_dir: Path | None = None, cache_root: Path | None = None, say: Say = quietly
) -> Prepared:
    """The config's rows as ids and labels, from the cache or tokenised now.

    Relative paths are looked for from the working directory and from `config_dir`. Two processes at once do the work
    once. BadInput or BadInputs for every row, file or option that cannot be used.
    """
    root = cache_root or (Path(config.dataset_prepared_path) if config.dataset_prepared_path else paths.home() / "data")
    inputs = open_inputs(config, config_dir)
    tokenizer = None if config.train_tokenizer else load_tokenizer(config, config_dir)
    key = _key(config, inputs, tokenizer)
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f"{key}.lock", say):
        entry = root / key
        if entry.exists() and not _is_sound(entry):
            say(f"the tokenised data in {entry} is damaged: tokenising again")
            shutil.rmtree(entry)
        if entry.exists():
            say(f"tokenised before: {entry}")
        else:
            _build(entry, config, inputs, tokenizer, say)
    prepared = open_prepared(entry)
    for line in prepared.report.lines():
        say(line)
    return prepared


def open_prepared(folder: Path) -> Prepared:
    """What `prepare` left in a cache entry. BadInput when it is not one."""
    try:
        told = read_json(folder / "entry.json")
        return Prepared(
            train=TokenRows.open(folder / "train"),
            eval=TokenRows.open(folder / "eval") if (folder / "eval").exists() else None,
            tokenizer_folder=folder / "tokenizer",
            report=DataReport.from_json(told["report"]),
            cache_folder=folder,
            fingerprint=told["fingerprint"],
        )
    except (OSError, ValueError, KeyError) as error:
        fix = "delete this folder and start the run again: the data is tokenised anew"
        raise BadInput(f"no tokenised data that can be read: {error}", file=str(folder), fix=fix) from error


# --- the cache ----------------------------------------------------------------------------------------------------


def _key(config: Config, inputs: Inputs, tokenizer: Any) -> str:
    said = config.model_dump(mode="json", include={"datasets", "test_datasets", *DATA_OPTIONS})
    for dataset in [*said["datasets"], *(said["test_datasets"] or [])]:
        for where in ("path", "name", "data_files", "split", "revision", "ds_type", "shards"):
            del dataset[where]  # where the rows lie does not matter, what they are does
    everything = {"format": FORMAT, "rows": inputs.fingerprint, "options": said, "tokenizer": _tokenizer_key(tokenizer)}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:32]


def _tokenizer_key(tokenizer: Any) -> str | None:
    if tokenizer is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return fingerprint(tokenizer, Path(folder))


@contextmanager
def _locked(lock: Path, say: Say) -> Iterator[None]:
    """One process at a time; the lock goes with the process, however it ends."""
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is tokenising this data: waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _is_sound(entry: Path) -> bool:
    """Every file as it was written: sizes and checksums."""
    try:
        told = read_json(entry / "entry.json")
        found = {split: checksums(entry / split) for split in told["files"]}
        return bool(found == told["files"]) and all((entry / "tokenizer" / name).exists() for name in told["tokenizer"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _build(entry: Path, config: Config, inputs: Inputs, tokenizer: Any, say: Say) -> None:
    for left in entry.parent.glob(f".{entry.name}.*.part"):  # of a process that was killed; we hold the lock
        shutil.rmtree(left)
    beside = entry.with_name(f".{entry.name}.{os.getpid()}.part")
    try:
        _write(beside, entry.name, config, inputs, tokenizer, say)
        beside.rename(entry)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    sync_folder(entry.parent)


def _write(folder: Path, key: str, config: Config, inputs: Inputs, tokenizer: Any, say: Say) -> None:
    if tokenizer is None:
        tokenizer = tokenizer_for(config, inputs, say)
    tokenizer.save_pretrained(folder / "tokenizer")
    encoder, tally = Encoder.of(tokenizer), Tally()
    splits = {"train": inputs.train, **({"eval": inputs.eval} if inputs.eval else {})}
    counts = {
        name: _write_split(folder / name, parts, config, tokenizer, encoder, tally, say)
        for name, parts in splits.items()
    }
    report = DataReport(
        train=counts["train"],
        eval=counts.get("eval"),
        dropped=tally.lost(inputs.duplicates),
        window=config.sequence_len,
        window_for_99_percent=tally.window_for(0.99),
        longest_row=max(tally.lengths, default=0),
        stop_tokens=_stop_tokens(TokenRows.open(folder / "train"), encoder),
    )
    check_losses(report, config)
    document = {
        "schema_version": 1,
        "fingerprint": key,
        "report": report.as_json(),
        "files": {name: checksums(folder / name) for name in splits},
        "tokenizer": sorted(path.name for path in (folder / "tokenizer").iterdir()),
    }
    write_json(folder / "entry.json", document)


def _write_split(
    folder: Path, parts: tuple[Part, ...], config: Config, tokenizer: Any, encoder: Encoder, tally: Tally, say: Say
) -> SplitCounts:
    too_long: list[tuple[str, int]] = []
    with RowsWriter(folder) as writer:
        for part in parts:
            say(f"tokenising {len(part.numbers):,} rows of {part.dataset.path}")
            for one in encode_part(part, make_format(part, config, tokenizer, encoder), config, encoder):
                tally.add(part.key, one)
                if one.fate in ("kept", "truncated"):
                    writer.write(one.example.ids, one.example.labels)
                elif one.fate == "too_long":
                    too_long.append((part.key, one.number))
        if too_long and config.excess_length_strategy == "raise":
            raise _too_long(too_long, tally, config)
        return SplitCounts(writer.rows, writer.tokens, writer.trained_tokens, writer.longest)


def check_losses(report: DataReport, config: Config) -> None:
    """BadInput when more than half of the rows would go, or nothing is left in a split."""
    gone = {why: lost for why, lost in report.dropped.items() if why not in ("truncated", "duplicates")}
    empty = [name for name, split in (("train", report.train), ("eval", report.eval)) if split and not split.rows]
    if sum(lost.share for lost in gone.values()) <= 0.5 and not empty:
        return
    left = f"; nothing is left in {empty[0]}" if empty else ""
    fix = f"sequence_len: {report.window_for_99_percent} keeps 99 % of the rows (see them with `dtrain lengths`)"
    told = ", ".join(f"{lost.rows:,} {why.replace('_', ' ')}" for why, lost in gone.items())
    words = f"more than half of the rows would be dropped: {told}{left}"
    too_short = gone.get("too_short", Lost(0, 0, 0.0)).share > 0.5
    key, value = ("min_sample_len", config.min_sample_len) if too_short else ("sequence_len", config.sequence_len)
    raise BadInput(words, key=key, value=value, fix="min_sample_len: 2" if too_short else fix)


def _too_long(rows: list[tuple[str, int]], tally: Tally, config: Config) -> BadInput:
    longest, window = max(tally.lengths), tally.window_for(0.99)
    where = "; ".join(first_rows(rows))
    words = (
        f"{len(rows):,} rows are longer than sequence_len {config.sequence_len} (the longest has {longest}): {where}"
    )
    fix = f"sequence_len: {longest}; {window} keeps 99 % of the rows with excess_length_strategy: drop or truncate"
    return BadInput(words, key="excess_length_strategy", value="raise", fix=fix)


def _stop_tokens(rows: TokenRows, encoder: Encoder) -> tuple[int, ...]:
    """The stop tokens that trained stretches end in."""
    found: set[int] = set()
    for row in range(0, len(rows), max(1, len(rows) // 10_000)):  # a sample: they do not differ by the row
        labels = rows.labels(row)
        ends = labels[np.flatnonzero((labels >= 0) & (np.append(labels[1:], -1) < 0))]
        found.update(ends.tolist())
    return tuple(sorted(found & encoder.stop_ids))


def tokenizer_for(config: Config, inputs: Inputs, say: Say = quietly) -> Any:
    """A tokenizer trained on the text of the training rows, as the model will see it."""
    blank = blank_tokenizer(config)  # renders chat templates; its ids are never used
    formats = [(part, make_format(part, config, blank, Encoder.of(blank))) for part in inputs.train]
    say("training a tokenizer on the rows' text")

    def texts() -> Iterator[str]:
        for part, how in formats:
            for _, rows in part.batches():
                for row in rows:
                    try:
                        yield how.text(row)
                    except RowProblem:
                        continue  # told with its number when the rows are encoded

    return train_tokenizer(texts(), config, [template for _, how in formats for template in how.templates])


# --- for a run ----------------------------------------------------------------------------------------------------


def main(run_folder: str | Path) -> int:
    """Prepare the data of a run and write its `data.json`; on failure `prepare.error.json`. Returns the exit code."""
    run = RunPaths.of(Path(run_folder))
    try:
        from dtrain.config.load import load

        config = load(run.config).config
        if __name__ == "__main__":
            leave_torch_out(config)
        prepared = prepare(config, config_dir=run.run, say=lambda line: print(f"[dtrain] {line}", flush=True))
        refuse_other_data(run, data_json(prepared))
        write_json(run.data, data_json(prepared))
    except Exception as error:
        told = _told(error)
        write_json(run.prepare_error, {**told, "traceback": traceback.format_exc()})
        print(f"error: {error}" if isinstance(error, DtrainError) else traceback.format_exc(), file=sys.stderr)
        return int(told["code"])
    return 0


def leave_torch_out(config: Config) -> None:
    """Let transformers find no torch: rows need none, and it takes two thirds of a small data set's time. Code of a
    repository may need it."""
    if config.trust_remote_code:
        return
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # it would tell that torch is missing
    sys.modules["torch"] = None  # type: ignore[assignment]
    from transformers.utils import is_torch_available

    is_torch_available()  # remembered
    del sys.modules["torch"]


def refuse_other_data(run: RunPaths, now: Mapping[str, Any]) -> None:
    """BadInput when a run that has trained would go on with other rows or another tokenizer than it began with."""
    try:
        before = read_json(run.data)
    except (OSError, ValueError):
        return  # its first life, or `dtrain resume --force`
    same = before.get("fingerprint") == now["fingerprint"] or accepts_changes()
    if same or not any(run.checkpoints.glob("step-*")):
        return
    what = "rows" if _tokenizer_file(before) == _tokenizer_file(now) else "tokenizer"
    counts = [{split: told.get(split) for split in ("train", "eval")} for told in (before, now)]
    raise BadInput(
        f"the {what} changed since the run began: it would not see each row once an epoch", file=str(run.data),
        value=counts[1], allowed=counts[0],
        fix=f"put the {what} back, or go on with what is there now: dtrain resume {run.output} --force",
    )  # fmt: skip


def _tokenizer_file(told: Mapping[str, Any]) -> bytes | None:
    try:
        return (Path(told["tokenizer"]) / "tokenizer.json").read_bytes()
    except (OSError, KeyError, TypeError):
        return None


def data_json(prepared: Prepared) -> dict[str, Any]:
    """A run's `data.json`."""
    report = prepared.report
    return {
        "schema_version": 1,
        "cache": str(prepared.cache_folder.resolve()),
        "tokenizer": str(prepared.tokenizer_folder.resolve()),
        "train": asdict(report.train),
        "eval": asdict(report.eval) if report.eval else None,
        "dropped": {why: asdict(lost) for why, lost in report.dropped.items()},
        "window_for_99_percent": report.window_for_99_percent,
        "stop_tokens": list(report.stop_tokens),
        "fingerprint": prepared.fingerprint,
    }


def _told(error: Exception) -> dict[str, Any]:
    if isinstance(error, BadInputs):
        return {**error.errors[0].as_json(), "errors": [one.as_json() for one in error.errors]}
    if isinstance(error, DtrainError):
        return error.as_json()
    if isinstance(error, OSError):  # a full disk, no permission: the system's words are the message
        return RunFailed(f"tokenising failed: {error.strerror or error}", file=error.filename).as_json()
    return RunFailed(f"tokenising failed: {type(error).__name__}: {error}").as_json()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
