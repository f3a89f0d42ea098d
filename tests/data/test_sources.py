"""Where rows come from, and every way in which they may not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dtrain.config.schema import Dataset
from dtrain.data.locate import open_source
from dtrain.data.sources import Source, open_json
from dtrain.errors import BadInput

ROWS = [{"text": f"row {number}", "number": number} for number in range(10)]


def opened(folder: Path, **entry: Any) -> Source:
    return open_source(Dataset(**entry), folder, "datasets[0]")


def all_rows(source: Source) -> list[dict[str, Any]]:
    return source.read(range(len(source)))


def refused(folder: Path, **entry: Any) -> BadInput:
    with pytest.raises(BadInput) as caught:
        all_rows(opened(folder, **entry))
    return caught.value


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


# --- kinds --------------------------------------------------------------------------------------------------------


def test_json_lines_and_json_lists_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(lines(ROWS))
    (tmp_path / "b.jsonl").write_text(json.dumps(ROWS, indent=2))
    assert all_rows(opened(tmp_path, path="a.json")) == ROWS == all_rows(opened(tmp_path, path="b.jsonl"))


def test_blank_lines_a_mark_at_the_start_and_dos_endings_are_no_trouble(tmp_path: Path) -> None:
    text = "\ufeff" + lines(ROWS[:2]) + "\r\n\n  \n" + json.dumps(ROWS[2])
    (tmp_path / "a.jsonl").write_text(text.replace("\n", "\r\n"), newline="")
    source = opened(tmp_path, path="a.jsonl")
    assert all_rows(source) == ROWS[:3]
    assert source.where(2)[1] == 6
    assert source.read([2, 0]) == [ROWS[2], ROWS[0]]


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "arrow"])
def test_tables_are_read_through_datasets(tmp_path: Path, kind: str) -> None:
    import datasets

    table = datasets.Dataset.from_list(ROWS)
    if kind == "arrow":
        table.save_to_disk(tmp_path / "data.arrow")
    elif kind == "parquet":
        table.to_parquet(tmp_path / "data.parquet")
    else:
        table.to_csv(tmp_path / f"data.{kind}", sep="\t" if kind == "tsv" else ",")
    source = opened(tmp_path, path=f"data.{kind}")
    assert all_rows(source) == ROWS
    assert source.read([7, 3]) == [ROWS[7], ROWS[3]]


def test_a_file_s_fingerprint_follows_its_bytes_not_its_name(tmp_path: Path) -> None:
    for name, rows in (("a.jsonl", ROWS), ("b.jsonl", ROWS), ("c.jsonl", ROWS[1:])):
        (tmp_path / name).write_text(lines(rows))
    a, b, c = (open_json(tmp_path / f"{name}.jsonl").fingerprint for name in "abc")
    assert a == b != c


# --- folders, splits, parts ---------------------------------------------------------------------------------------


def test_a_folder_is_split_by_the_names_of_its_files(tmp_path: Path) -> None:
    for name, rows in (("train-0", ROWS[:2]), ("train-1", ROWS[2:4]), ("validation", ROWS[4:5]), ("my_test", ROWS[5:])):
        (tmp_path / f"{name}.jsonl").write_text(lines(rows))
    (tmp_path / "README.md").write_text("words")
    assert all_rows(opened(tmp_path, path=str(tmp_path))) == ROWS[:4]
    assert all_rows(opened(tmp_path, path=str(tmp_path), split="validation+test")) == ROWS[4:]
    error = refused(tmp_path, path=str(tmp_path), split="tset")
    assert (error.key, error.allowed, error.fix) == ("datasets[0].split", "test, train, validation", "split: test")


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("train[:3]", [0, 1, 2]), ("train[8:]", [8, 9]), ("train[-2:]", [8, 9]), ("train[10%:30%]", [1, 2]),
        ("train[:1]+train[9:]", [0, 9]), ("train", list(range(10))),
    ],
)  # fmt: skip
def test_slices(tmp_path: Path, split: str, numbers: list[int]) -> None:
    (tmp_path / "a.jsonl").write_text(lines(ROWS))
    assert [row["number"] for row in all_rows(opened(tmp_path, path="a.jsonl", split=split))] == numbers


def test_data_files_shards_and_generic_paths(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"part-{number}.jsonl").write_text(lines(ROWS[number * 3 : number * 3 + 3]))
    assert all_rows(opened(tmp_path, path=str(tmp_path), data_files="part-[01].jsonl")) == ROWS[:6]
    assert all_rows(opened(tmp_path, path="json", data_files=["part-2.jsonl", "part-0.jsonl"])) == ROWS[6:9] + ROWS[:3]
    assert all_rows(opened(tmp_path, path="json", data_files="part-*.jsonl", shards=4)) == ROWS[:3]
    assert "part-0.jsonl" in str(refused(tmp_path, path=str(tmp_path), data_files="part-9.jsonl").allowed)


# --- bad input ----------------------------------------------------------------------------------------------------


def test_a_json_line_cut_in_half_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines(ROWS[:4]) + "\n" + '{"text": "row 4", "num')
    error = refused(tmp_path, path="a.jsonl")
    assert (error.where(), error.exit_code) == (f"{tmp_path / 'a.jsonl'}:6", 2)
    assert "row 5 is not a whole JSON object" in error.message
    assert '"num' in error.message


def test_a_json_list_cut_in_half_says_how_far_it_is_whole(tmp_path: Path) -> None:
    text = json.dumps(ROWS, indent=1)
    (tmp_path / "a.json").write_text(text[: text.index('"row 7"') + 4])
    error = refused(tmp_path, path="a.json")
    assert "rows 1 to 7 are complete, row 8 is not" in error.message
    assert error.line is not None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no rows"), (b"\n \n", "no rows"), (b"[]", "no rows"),
        (b'{"a": 1}\n[1, 2]\n', "row 2 is a list"), (b'{"a": 1}\nnull\n', "row 2 is empty"),
        (b"[{}, 3]", "row 2 is a number"),
        (b'{"a": "\xff"}\n', "row 1 is not UTF-8"), (b'{\n "a": 1\n}\n', "one JSON value over several lines"),
        (b'{"a": ' + b"[" * 100_000, "row 1 is not a whole JSON object"),
    ],
)  # fmt: skip
def test_files_that_hold_no_rows(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    assert words in refused(tmp_path, path="a.jsonl").message


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "stories.jsonl").write_text(lines(ROWS))
    error = refused(tmp_path, path="storys.jsonl")
    assert (error.key, error.value) == ("datasets[0].path", "storys.jsonl")
    assert error.fix == f"did you mean {tmp_path / 'stories.jsonl'}?"


@pytest.mark.parametrize(("name", "words"), [("a.parquet", "cannot be read as parquet"), ("b.csv", "is empty")])
def test_broken_and_empty_tables(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "b.csv").write_bytes(b"")
    error = refused(tmp_path, path=name)
    assert words in error.message
    assert error.file == str(tmp_path / name)


def test_folders_without_data_or_with_mixed_kinds(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    assert "it holds notes.md" in refused(tmp_path, path=str(tmp_path)).message
    (tmp_path / "a.jsonl").write_text(lines(ROWS))
    (tmp_path / "b.csv").write_text("text\nx\n")
    assert "several kinds (csv, json)" in refused(tmp_path, path=str(tmp_path)).message


def test_an_ending_that_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "rows.data").write_text(lines(ROWS))
    assert refused(tmp_path, path="rows.data").fix == "say it: ds_type: json"
    assert all_rows(opened(tmp_path, path="rows.data", ds_type="json")) == ROWS


def test_a_hub_name_without_network_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    error = refused(tmp_path, path="nobody/stories")
    assert "the hub cannot be reached, and this is no local file" in error.message
    assert (error.key, error.value) == ("datasets[0].path", "nobody/stories")


ASK_A_HUB = """
import http.server, os, threading, time

class NothingHere(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_HEAD = do_POST = do_GET
    def log_message(self, *_): pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), NothingHere)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"

from dtrain.data.hub import open_hub
from dtrain.data.tokenizer import named_tokenizer
from dtrain.errors import BadInput

def ask():
    for load, given in (
        (open_hub, ("nobody/none", None, None, None, "datasets[0]")), (named_tokenizer, ("nobody/none", "base_model")),
    ):
        try:
            load(*given)
        except BadInput as error:
            print(error.key, "|", error.message)

ask()
server.shutdown()
server.server_close()
slept = []
time.sleep = slept.append
ask()
assert sum(slept) < 10, "retried a door that is shut"
"""  # fmt: skip


def test_a_name_no_hub_knows_and_a_hub_that_does_not_answer(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower() and "OFFLINE" not in name}
    env = {**kept, "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ASK_A_HUB], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    unknown, no_tokenizer, shut, shut_too = done.stdout.splitlines()
    assert unknown == "datasets[0].path | no such dataset on the hub, and no such file here"
    assert no_tokenizer.startswith("base_model | the tokenizer cannot be loaded: nobody/none is not a local folder")
    assert shut == "datasets[0].path | the hub cannot be reached, and this is no local file"
    assert shut_too == "base_model | the hub cannot be reached, and this is no local folder"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_half_a_character_is_told_with_its_row(tmp_path: Path, name: str) -> None:
    rows = ['{"text": "whole \\ud83d\\ude00"}', '{"text": "half \\ud83d"}']
    text = "\n".join(rows) if name.endswith("l") else "[" + ",\n".join(rows) + "]"
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=r"row 2 holds half of a character \('\\ud83d'\)"):
        open_json(tmp_path / name).read([0, 1])
