"""`dtrain preview`, `lengths` and `tokens` as a person types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dtrain.cli.main import main
from dtrain.data.look import describe


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    monkeypatch.setenv("DTRAIN_HOME", str(tmp_path / "home"))

    def run(*words: str) -> Done:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def file(tmp_path: Path, write_rows: Callable[..., Path], plain_tokenizer: Path) -> Path:
    rows = [{"q": f"who [{number}]?", "a": "the fox [brown]"} for number in range(9)] + [{"q": "x", "a": "Z" * 600}]
    config: dict[str, Any] = {
        "base_model": str(plain_tokenizer), "micro_batch_size": 1, "sequence_len": 128,
        "datasets": [{"path": write_rows(rows).name, "type": {
            "field_instruction": "q", "field_output": "a", "no_input_format": "{instruction} => "}}],
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    return tmp_path / "run.yaml"


def test_preview_marks_what_is_trained_and_tells_what_was_dropped(typed: Callable[..., Done], file: Path) -> None:
    done = typed("preview", str(file), "--rows", "2")
    assert done.code == 0
    assert "<s>who [0]? => ⟦the fox [brown]</s>⟧" in done.out  # brackets are text, not rich's markup
    assert "row 2 ·" in done.out
    assert "row 3 ·" not in done.out
    assert "dropped 1 rows with 607 tokens that are longer than sequence_len 128: 10.0% of the rows" in done.err


def test_preview_as_json(typed: Callable[..., Done], file: Path) -> None:
    told = json.loads(typed("preview", str(file), "--rows", "1", "--json").out)
    assert told["schema_version"] == 1
    assert told["report"]["dropped"]["too_long"]["rows"] == 1
    assert told["rows"][0]["stretches"] == [
        {"trained": False, "text": "<s>who [0]? => "}, {"trained": True, "text": "the fox [brown]</s>"},
    ]  # fmt: skip


def test_preview_of_bad_data_is_an_error_of_the_contract(typed: Callable[..., Done], file: Path) -> None:
    done = typed("preview", str(file), "--set", "datasets[0].type.field_output=answer", "--json")
    assert done.code == 2
    told = json.loads(done.out)["error"]
    assert (told["key"], told["line"]) == ("datasets[0].type.field_output", 1)
    assert "the columns are q, a" in told["message"]


def test_lengths_shows_what_each_window_cuts(typed: Callable[..., Done], file: Path) -> None:
    told = json.loads(typed("lengths", str(file), "--json").out)
    assert (told["rows"], told["longest"], told["sequence_len"]) == (10, 607, 128)
    assert [(cut["window"], cut["rows_over"], cut["tokens_cut"]) for cut in told["windows"]] == [
        (128, 1, 479), (256, 1, 351), (512, 1, 95), (1024, 0, 0),
    ]  # fmt: skip
    done = typed("lengths", str(file))
    assert "sequence_len is 128, which 1 rows exceed; 607 keeps 99 % of the rows whole." in done.out


def test_tokens_of_a_text_a_file_and_rows(typed: Callable[..., Done], tmp_path: Path, plain_tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("the fox")
    (tmp_path / "a.jsonl").write_text(json.dumps({"a": "the fox", "messages": [{"content": "the fox"}], "n": 3}) + "\n")
    (text,), (in_file,), (in_rows,) = (
        json.loads(typed("tokens", said, "--tokenizer", str(plain_tokenizer), "--json").out)["counts"]
        for said in ("the fox", str(tmp_path / "a.txt"), str(tmp_path / "a.jsonl"))
    )
    assert text["tokens"] == in_file["tokens"] == in_rows["tokens"] / 2
    assert (text["characters"], in_rows["texts"]) == (7, 2)
    table = typed("tokens", "the fox", "--tokenizer", str(plain_tokenizer)).out
    assert str(text["tokens"]) in table.split()


@pytest.mark.parametrize("lengths", [[1], [5, 5, 5], [1, 2, 3, 4, 6, 8, 4096], list(range(1, 700))])
def test_the_histogram_counts_every_row_once(lengths: list[int]) -> None:
    found = describe(lengths, 512)
    assert sum(rows for _, _, rows in found.histogram) == len(lengths)
    for first, last, rows in found.histogram:
        assert rows == sum(first <= length <= last for length in lengths)
    assert found.windows[-1].rows_over == 0
