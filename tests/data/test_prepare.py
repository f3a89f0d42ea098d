"""The cache, the splits, the losses and the run's data.json."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dtrain.config.load import dump
from dtrain.config.schema import Config
from dtrain.data.prepare import Prepared, open_prepared, prepare
from dtrain.data.rows import TokenRows
from dtrain.errors import BadInput, BadInputs
from dtrain.files import read_json
from dtrain.own_process import ACCEPT_CHANGES
from dtrain.paths import RunPaths
from tests.data.conftest import byte_level
from tests.data.seeing import tokenizer_of

SAYS = {"field_instruction": "q", "field_output": "a", "no_input_format": "{instruction}: "}


def rows_of(lengths: list[int]) -> list[dict[str, Any]]:
    """Rows of exactly these many tokens: BOS, `:`, a space, a `Z` a token (it never merges), EOS."""
    return [{"q": "", "a": "Z" * (length - 4)} for length in lengths]


@pytest.fixture
def config_for(
    write_rows: Callable[..., Path], make_config: Callable[..., Config], plain_tokenizer: Path
) -> Callable[..., Config]:
    def make(rows: list[dict[str, Any]], **keys: Any) -> Config:
        entry = {"path": str(write_rows(rows)), "type": SAYS, **keys.pop("entry", {})}
        return make_config(keys.pop("tokenizer", plain_tokenizer), entry, **keys)

    return make


@pytest.fixture
def made(config_for: Callable[..., Config], tmp_path: Path) -> Callable[..., Prepared]:
    return lambda rows, **keys: prepare(config_for(rows, **keys), cache_root=tmp_path / "cache")


def test_the_rows_are_as_long_as_these_tests_think(made: Callable[..., Prepared]) -> None:
    assert made(rows_of([8, 5, 12])).train.lengths.tolist() == [8, 5, 12]


# --- losses -------------------------------------------------------------------------------------------------------


def test_over_long_rows_are_dropped_and_told(made: Callable[..., Prepared]) -> None:
    report = made(rows_of([10] * 8 + [40, 50]), sequence_len=20).report
    assert (report.train.rows, report.train.longest, report.longest_row) == (8, 10, 50)
    lost = report.dropped["too_long"]
    assert (lost.rows, lost.tokens, lost.share, lost.first_rows) == (2, 90, 0.2, ("datasets[0] rows 9, 10",))
    assert report.window_for_99_percent == 50
    [line] = [line for line in report.lines() if "dropped" in line]
    assert "2 rows with 90 tokens" in line
    assert "20.0%" in line
    assert "sequence_len: 50 would keep 99 %" in line


def test_truncation_cuts_and_counts(made: Callable[..., Prepared]) -> None:
    prepared = made(rows_of([10] * 8 + [40, 50]), sequence_len=20, excess_length_strategy="truncate")
    assert prepared.train.lengths.tolist() == [10] * 8 + [20, 20]
    lost = prepared.report.dropped["truncated"]
    assert (lost.rows, lost.tokens) == (2, 50)


def test_a_row_whose_answer_is_cut_off_whole_is_dropped_and_told(made: Callable[..., Prepared]) -> None:
    rows = [*rows_of([10] * 3), {"q": "Z" * 40, "a": "b"}]
    prepared = made(rows, sequence_len=20, excess_length_strategy="truncate")
    assert len(prepared.train) == 3
    assert prepared.report.dropped["nothing_trained_after_truncation"].rows == 1


def test_raise_names_the_rows_and_the_window(made: Callable[..., Prepared]) -> None:
    with pytest.raises(BadInput, match=r"1 rows are longer .* row 2") as caught:
        made(rows_of([10, 40, 12]), sequence_len=20, excess_length_strategy="raise")
    assert "sequence_len: 40" in str(caught.value.fix)


def test_losing_more_than_half_of_the_rows_is_an_error(made: Callable[..., Prepared]) -> None:
    assert made(rows_of([10, 10, 40, 40]), sequence_len=20).report.train.rows == 2
    with pytest.raises(BadInput, match="more than half of the rows would be dropped: 3 too long") as caught:
        made(rows_of([10, 10, 40, 40, 50]), sequence_len=20)
    assert (caught.value.key, caught.value.value) == ("sequence_len", 20)


def test_short_rows(made: Callable[..., Prepared]) -> None:
    report = made(rows_of([10, 10, 5]), min_sample_len=6).report
    assert (report.train.rows, report.dropped["too_short"].rows) == (2, 1)


# --- splits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "held_out"), [(0.25, 5), (7, 7), (0.05, 1)])
def test_rows_are_held_out_by_seed_and_none_is_in_both(
    made: Callable[..., Prepared], size: float, held_out: int
) -> None:
    lengths = list(range(5, 25))
    prepared = made(rows_of(lengths), val_set_size=size)
    assert prepared.eval is not None
    assert len(prepared.eval) == held_out
    assert sorted([*prepared.train.lengths.tolist(), *prepared.eval.lengths.tolist()]) == lengths
    assert prepared.train.lengths.tolist() == sorted(prepared.train.lengths.tolist())  # file order is kept
    again, other = (made(rows_of(lengths), val_set_size=size, seed=seed).eval for seed in (42, 43))
    assert again is not None
    assert other is not None
    assert again.lengths.tolist() == prepared.eval.lengths.tolist()
    assert held_out == 1 or other.lengths.tolist() != prepared.eval.lengths.tolist()


@pytest.mark.parametrize(("size", "words"), [(0.01, "no row for evaluation"), (20, "no row to train on")])
def test_an_empty_split_is_an_error(made: Callable[..., Prepared], size: float, words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        made(rows_of([10] * 20), val_set_size=size)
    assert caught.value.key == "val_set_size"


def test_test_datasets_are_held_out(made: Callable[..., Prepared], tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"q": "", "a": "Z" * 9}) + "\n")
    prepared = made(rows_of([10] * 3), test_datasets=[{"path": str(tmp_path / "test.jsonl"), "type": SAYS}])
    assert prepared.eval is not None
    assert (len(prepared.train), prepared.eval.lengths.tolist()) == (3, [13])


def test_equal_rows_are_left_out_also_of_the_held_out_ones(made: Callable[..., Prepared], tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of([10, 14])))
    test = [{"path": str(tmp_path / "test.jsonl"), "type": SAYS}]
    prepared = made(rows_of([10, 11, 10, 12]), test_datasets=test, dataset_exact_deduplication=True)
    assert prepared.eval is not None
    assert (prepared.train.lengths.tolist(), prepared.eval.lengths.tolist()) == ([10, 11, 12], [14])
    assert prepared.report.dropped["duplicates"].rows == 2


def test_several_sources_one_after_another(
    tmp_path: Path, write_rows: Callable[..., Path], make_config: Callable[..., Config], plain_tokenizer: Path
) -> None:
    entries = [
        {"path": str(write_rows(rows_of([10, 11]), "a.jsonl")), "type": SAYS},
        {"path": str(write_rows([{"text": "ZZ"}], "b.jsonl")), "type": "completion"},
    ]
    prepared = prepare(make_config(plain_tokenizer, entries), cache_root=tmp_path / "cache")
    assert prepared.train.lengths.tolist() == [10, 11, 4]


def test_all_sources_that_cannot_be_opened_are_told_at_once(
    tmp_path: Path, make_config: Callable[..., Config], plain_tokenizer: Path
) -> None:
    entries = [{"path": "nowhere.jsonl", "type": SAYS}, {"path": "./nothing/here", "type": SAYS}]
    with pytest.raises(BadInputs) as caught:
        prepare(make_config(plain_tokenizer, entries), cache_root=tmp_path / "cache")
    assert [error.key for error in caught.value.errors] == ["datasets[0].path", "datasets[1].path"]
    assert not (tmp_path / "cache").exists()


# --- the cache ----------------------------------------------------------------------------------------------------


def said_by(config: Config, root: Path) -> tuple[Prepared, str]:
    said: list[str] = []
    prepared = prepare(config, cache_root=root, say=said.append)
    return prepared, "\n".join(said)


def test_the_second_time_nothing_is_tokenised(config_for: Callable[..., Config], tmp_path: Path) -> None:
    config = config_for(rows_of([10, 12]), val_set_size=1)
    first, said = said_by(config, tmp_path)
    assert "tokenising" in said
    second, said = said_by(config, tmp_path)
    assert "tokenised before" in said
    assert second.report == first.report
    assert second.train.ids(0).tolist() == first.train.ids(0).tolist()
    assert open_prepared(first.cache_folder).fingerprint == first.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"sequence_len": 99}, {"train_on_inputs": True}, {"tokens": ["<new>"]}, {"val_set_size": 1},
        {"entry": {"type": {**SAYS, "no_input_format": "{instruction}"}}}, {"special_tokens": {"pad_token": "</s>"}},
        {"excess_length_strategy": "truncate"}, {"chat_template": "chatml"},
    ],
)  # fmt: skip
def test_every_option_that_matters_makes_another_entry(
    config_for: Callable[..., Config], tmp_path: Path, change: dict[str, Any]
) -> None:
    rows = rows_of([10, 12])
    folders = {prepare(config_for(rows, **keys), cache_root=tmp_path).cache_folder for keys in ({}, dict(change))}
    assert len(folders) == 2


def test_rows_and_tokenizer_make_another_entry_names_and_batches_do_not(
    config_for: Callable[..., Config], tmp_path: Path
) -> None:
    first = prepare(config_for(rows_of([10, 12])), cache_root=tmp_path).cache_folder
    assert prepare(config_for(rows_of([10, 13])), cache_root=tmp_path).cache_folder != first
    other = byte_level(tmp_path / "other", bos=False)
    assert prepare(config_for(rows_of([10, 12]), tokenizer=other), cache_root=tmp_path).cache_folder != first
    same = byte_level(tmp_path / "same")
    config = config_for(rows_of([10, 12]), tokenizer=same, learning_rate=1e-3, seed=3)
    assert prepare(config, cache_root=tmp_path).cache_folder == first


@pytest.mark.parametrize("damage", ["flip", "cut", "no entry", "no tokenizer"])
def test_a_damaged_entry_is_found_and_made_again(
    config_for: Callable[..., Config], tmp_path: Path, damage: str
) -> None:
    config = config_for(rows_of([10, 12]))
    before = prepare(config, cache_root=tmp_path)
    expected, ids = before.train.ids(1).tolist(), before.cache_folder / "train" / "ids.npy"
    content = bytearray(ids.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
        ids.write_bytes(content)
    elif damage == "cut":
        ids.write_bytes(content[:-8])
    elif damage == "no entry":
        (before.cache_folder / "entry.json").write_text("{")
    else:
        (before.cache_folder / "tokenizer" / "tokenizer.json").unlink()
    after, said = said_by(config, tmp_path)
    assert "damaged" in said
    assert after.train.ids(1).tolist() == expected


def test_a_failure_leaves_nothing_in_the_cache(config_for: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        prepare(config_for(rows_of([10, 40, 40]), sequence_len=20), cache_root=tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_two_processes_at_once_do_the_work_once(config_for: Callable[..., Config], tmp_path: Path) -> None:
    run = run_folder(tmp_path, config_for(rows_of([10] * 400), dataset_prepared_path=str(tmp_path / "cache")))
    command = [sys.executable, "-m", "dtrain.data.prepare", str(run.output)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("tokenising 400 rows" in text for text in said) == 1
    assert sum("tokenised before" in text for text in said) == 1


def test_an_entry_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no tokenised data"):
        open_prepared(tmp_path)


# --- tokenizers ---------------------------------------------------------------------------------------------------


def test_a_tokenizer_is_trained_on_the_run_s_text_with_the_prompts_control_tokens(
    made: Callable[..., Prepared], tmp_path: Path
) -> None:
    how = {**SAYS, "no_input_format": "<|user|> {instruction} </s>\n<|assistant|>"}
    rows = [{"q": f"who is number {number}", "a": "a brave little lighthouse keeper"} for number in range(50)]
    prepared = made(rows, entry={"type": how}, tokenizer=tmp_path, train_tokenizer={"vocab_size": 320})
    tokenizer = tokenizer_of(prepared)
    assert tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<unk>", "<pad>", "<|user|>", "<|assistant|>"]) == [
        *range(6)
    ]
    assert len(tokenizer) <= 320
    assert len(tokenizer("lighthouse", add_special_tokens=False)["input_ids"]) < 5
    text = "ünïcödé 日本 \t and <|user|>"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert prepared.train.ids(0).tolist()[:2] == [0, 4]


def test_a_vocabulary_too_small_for_bytes_is_refused(made: Callable[..., Prepared], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="smaller than 256 bytes") as caught:
        made(rows_of([10]), tokenizer=tmp_path, train_tokenizer={"vocab_size": 100})
    assert caught.value.allowed == ">= 260"


def test_a_folder_without_a_tokenizer(made: Callable[..., Prepared], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match="no tokenizer in this folder") as caught:
        made(rows_of([10]), tokenizer=tmp_path)
    assert "train_tokenizer" in str(caught.value.fix)


def test_pad_is_filler_where_a_tokenizer_has_none(made: Callable[..., Prepared], tmp_path: Path) -> None:
    prepared = made([{"q": "x", "a": "</s> hi </s> you"}], tokenizer=byte_level(tmp_path / "t", pad=False))
    tokenizer = tokenizer_of(prepared)
    assert tokenizer.pad_token == "</s>"
    labels = prepared.train.labels(0).tolist()
    assert labels.count(1) == 3  # an end token in the text is trained like any other: pad is never what masks


def test_added_tokens_are_in_the_vocabulary_and_in_the_rows(made: Callable[..., Prepared]) -> None:
    prepared = made([{"q": "x", "a": "<go> hi"}], tokens=["<go>"], special_tokens={"eos_token": "<|end|>"})
    tokenizer = tokenizer_of(prepared)
    assert tokenizer.eos_token == "<|end|>"
    assert prepared.train.ids(0).tolist()[-1] == tokenizer.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<go>") in prepared.train.ids(0).tolist()
    assert prepared.report.stop_tokens == (tokenizer.eos_token_id,)


# --- for a run ----------------------------------------------------------------------------------------------------


def run_folder(folder: Path, config: Config) -> RunPaths:
    run = RunPaths(folder / "run")
    run.run.mkdir(parents=True)
    run.config.write_text(dump(config))
    return run


def test_a_run_s_data_json(config_for: Callable[..., Config], tmp_path: Path) -> None:
    from dtrain.data.prepare import main

    run = run_folder(
        tmp_path,
        config_for(
            rows_of([10] * 9 + [40]), sequence_len=20, dataset_prepared_path=str(tmp_path / "c"), val_set_size=2
        ),
    )
    assert main(str(run.output)) == 0
    told = read_json(run.data)
    assert told["schema_version"] == 1
    assert told["train"]["rows"] + told["eval"]["rows"] == 9
    assert told["dropped"]["too_long"]["rows"] == 1
    prepared = open_prepared(Path(told["cache"]))
    assert (prepared.fingerprint, str(prepared.tokenizer_folder)) == (told["fingerprint"], told["tokenizer"])


def test_a_run_s_failure_is_written_for_the_launcher(config_for: Callable[..., Config], tmp_path: Path) -> None:
    from dtrain.data.prepare import main

    rows = [{"q": "x"}, {"q": "x", "a": "y"}, {"a": "y"}]
    run = run_folder(tmp_path, config_for(rows, dataset_prepared_path=str(tmp_path / "c")))
    assert main(str(run.output)) == 2
    told = read_json(run.prepare_error)
    assert (told["code"], told["line"], len(told["errors"])) == (2, 1, 2)
    assert "encode.py" in told["traceback"]
    assert not run.data.exists()


def test_other_rows_under_a_run_that_has_trained_are_refused_until_forced(
    config_for: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dtrain.data.prepare import main

    run = run_folder(tmp_path, config_for(rows_of([10] * 9), dataset_prepared_path=str(tmp_path / "c")))
    assert main(str(run.output)) == 0
    first = read_json(run.data)
    run.config.write_text(dump(config_for(rows_of([10] * 8), dataset_prepared_path=str(tmp_path / "c"))))
    run.checkpoint(3).mkdir(parents=True)
    assert main(str(run.output)) == 2
    assert "the rows changed since the run began" in read_json(run.prepare_error)["message"]
    assert read_json(run.data) == first
    monkeypatch.setenv(ACCEPT_CHANGES, "1")
    assert main(str(run.output)) == 0
    assert read_json(run.data)["train"]["rows"] == 8


def test_rows_are_mapped_not_read(made: Callable[..., Prepared]) -> None:
    rows: TokenRows = made(rows_of([10, 12])).train
    assert isinstance(rows.ids(0), np.memmap)
    assert rows.trained.tolist() == [7, 9]
    assert len(rows) == 2
