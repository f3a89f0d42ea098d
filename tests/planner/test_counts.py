"""Counting data without reading tokens: rows from lines, tokens from bytes, and loud words for what is assumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dtrain.config.load import dump, loads
from dtrain.config.schema import Config
from dtrain.planner.counts import BYTES_PER_TOKEN, counted_before, estimate_counts

ROW = {"instruction": "a question", "output": "word " * 40}


def config(path: Path | str, *lines: str) -> Config:
    return loads("\n".join(["base_model: x", f"datasets: [{{path: {path}, type: alpaca}}]", *lines])).config


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(ROW) for _ in range(50)))  # no newline at the end
    return file


def test_rows_are_lines_and_tokens_are_bytes(jsonl: Path) -> None:
    counts = estimate_counts(config(jsonl), None)
    assert counts.rows == counts.slots == 50
    assert counts.tokens == pytest.approx(jsonl.stat().st_size / BYTES_PER_TOKEN, rel=0.05)
    assert not counts.exact
    assert not counts.warnings
    assert "50 rows" in counts.source


def test_a_json_list_and_a_csv(tmp_path: Path) -> None:
    listed, table = tmp_path / "rows.json", tmp_path / "rows.csv"
    listed.write_text(json.dumps([ROW] * 7, indent=1))
    table.write_text("instruction,output\n" + "a,b\n" * 9)
    assert estimate_counts(config(listed), None).rows == 7
    assert estimate_counts(config(table), None).rows == 9


def test_packing_fills_windows(jsonl: Path) -> None:
    counts = estimate_counts(config(jsonl, "sample_packing: true", "sequence_len: 1000"), None)
    assert counts.slots == -(-counts.tokens // 980)


def test_held_out_rows_are_not_trained(jsonl: Path) -> None:
    share = estimate_counts(config(jsonl, "val_set_size: 0.1"), None)
    number = estimate_counts(config(jsonl, "val_set_size: 20"), None)
    assert (share.rows, share.eval_rows) == (45, 5)
    assert (number.rows, number.eval_rows) == (30, 20)


def test_a_folder_with_a_pattern(tmp_path: Path, jsonl: Path) -> None:
    (tmp_path / "other.csv").write_text("instruction,output\na,b\n")
    only = loads(f"base_model: x\ndatasets: [{{path: {tmp_path}, type: alpaca, data_files: '*.jsonl'}}]").config
    assert estimate_counts(only, None).rows == 50
    assert estimate_counts(config(tmp_path), None).rows == 51


def test_a_hub_name_is_assumed_loudly() -> None:
    counts = estimate_counts(config("nobody/nothing"), None)
    assert counts.source == "assumed"
    assert "ASSUME 10,000 rows" in counts.warnings[0]


def test_a_broken_list_is_still_counted(tmp_path: Path) -> None:
    broken = tmp_path / "rows.json"
    broken.write_text('[{"instruction": "a", "out')
    assert estimate_counts(config(broken), None).rows >= 1


def test_an_earlier_run_on_the_same_data_has_counted(tmp_path: Path, jsonl: Path) -> None:
    output = tmp_path / "out"
    same = config(jsonl, f"output_dir: {output}", "learning_rate: 1e-4")
    (output / "dtrain").mkdir(parents=True)
    (output / "dtrain" / "config.yaml").write_text(dump(config(jsonl, f"output_dir: {output}")))
    told = {"train": {"rows": 47, "tokens": 2500, "trained_tokens": 2000}, "eval": None}
    (output / "dtrain" / "data.json").write_text(json.dumps(told))
    counts = counted_before(same)
    assert counts is not None
    assert (counts.rows, counts.tokens, counts.slots, counts.exact) == (47, 2500, 47, True)
    assert counted_before(config(jsonl, f"output_dir: {output}", "sequence_len: 64")) is None
    assert counted_before(config(jsonl)) is None
