"""Rendering, boundaries and masks of each `type:`, against expectations by hand (axolotl_keys.md 7.1 to 7.3)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dtrain.config.schema import Config
from dtrain.data.prepare import Prepared, prepare
from dtrain.errors import BadInput, BadInputs
from tests.data.conftest import byte_level
from tests.data.seeing import parts, tokenizer_of

STORY = {
    "field_instruction": "synopsis", "field_output": "story",
    "format": "<|user|>\n {instruction} {input} </s>\n<|assistant|>",
    "no_input_format": "<|user|> {instruction} </s>\n<|assistant|>",
}  # fmt: skip


@pytest.fixture
def made(
    tmp_path: Path, write_rows: Callable[..., Path], make_config: Callable[..., Config], plain_tokenizer: Path
) -> Callable[..., Prepared]:
    def make(rows: list[dict[str, Any]], type_: Any, tokenizer: Path = plain_tokenizer, **more: Any) -> Prepared:
        dataset = {"path": str(write_rows(rows)), "type": type_, **more.pop("dataset", {})}
        return prepare(make_config(tokenizer, dataset, **more), cache_root=tmp_path / "cache")

    return make


def test_a_row_without_input_uses_no_input_format_and_trains_output_and_eos(made: Callable[..., Prepared]) -> None:
    prepared = made([{"synopsis": "a fox", "story": "it jumps"}], STORY)
    assert parts(prepared) == [(False, "<s><|user|> a fox </s>\n<|assistant|>"), (True, "it jumps</s>")]
    ids = prepared.train.ids(0).tolist()
    tokenizer = tokenizer_of(prepared)
    prompt = tokenizer("<|user|> a fox </s>\n<|assistant|>")["input_ids"]
    assert ids == prompt + tokenizer("it jumps", add_special_tokens=False)["input_ids"] + [1]
    assert prompt[0] == 0  # BOS once
    assert ids.count(0) == 1
    assert ids.count(1) == 2  # the </s> of the template is the special token


def test_prompt_and_output_never_merge_into_one_token(made: Callable[..., Prepared]) -> None:
    how = {"field_instruction": "q", "field_output": "a", "no_input_format": "{instruction}"}
    prepared = made([{"q": "th", "a": "e"}], how)
    tokenizer = tokenizer_of(prepared)
    assert len(tokenizer("the", add_special_tokens=False)["input_ids"]) == 1
    assert parts(prepared) == [(False, "<s>th"), (True, "e</s>")]


def test_system_input_and_numbers_are_rendered(made: Callable[..., Prepared]) -> None:
    how = {
        "field_instruction": "q", "field_input": "in", "field_output": "a", "field_system": "sys",
        "system_format": "[{system}] ", "format": "{instruction}|{input}:", "no_input_format": "{instruction}:",
    }  # fmt: skip
    rows = [
        {"q": "two", "in": 2, "a": 4, "sys": "be {brief}"},
        {"q": "two", "in": "", "a": "x", "sys": None},
        {"q": "{two}", "in": None, "a": "y", "sys": ""},
    ]
    prepared = made(rows, how)
    assert [parts(prepared, row) for row in range(3)] == [
        [(False, "<s>[be {brief}] two|2:"), (True, "4</s>")],
        [(False, "<s>two:"), (True, "x</s>")],
        [(False, "<s>{two}:"), (True, "y</s>")],
    ]


def test_the_system_prompt_serves_rows_without_a_system_column(made: Callable[..., Prepared]) -> None:
    how = {**STORY, "system_prompt": "you are", "system_format": "<<{system}>>", "no_input_format": "{instruction} "}
    prepared = made([{"synopsis": "a fox", "story": "x"}], how)
    assert parts(prepared) == [(False, "<s><<you are>>a fox "), (True, "x</s>")]


def test_eos_and_bos_that_the_text_brings_are_not_doubled(made: Callable[..., Prepared]) -> None:
    how = {"field_instruction": "q", "field_output": "a", "no_input_format": "<s>{instruction} "}
    prepared = made([{"q": "hi", "a": "<s>you</s>"}], how)
    assert parts(prepared) == [(False, "<s>hi "), (True, "you</s>")]


def test_a_tokenizer_without_bos_gets_none(made: Callable[..., Prepared], tmp_path: Path) -> None:
    prepared = made([{"synopsis": "a fox", "story": "x"}], STORY, tokenizer=byte_level(tmp_path / "t", bos=False))
    assert parts(prepared)[0] == (False, "<|user|> a fox </s>\n<|assistant|>")


def test_train_on_inputs_trains_everything(made: Callable[..., Prepared]) -> None:
    prepared = made([{"synopsis": "a fox", "story": "x"}], STORY, train_on_inputs=True)
    assert parts(prepared) == [(True, "<s><|user|> a fox </s>\n<|assistant|>x</s>")]
    assert prepared.train.trained[0] == prepared.train.lengths[0] - 1  # nothing predicts the first token


def test_alpaca_has_its_two_prompts(made: Callable[..., Prepared]) -> None:
    rows = [
        {"instruction": "add", "input": "two plus two", "output": "four", "system": "ignored"},
        {"instruction": "say hello", "input": "", "output": "hello"},
    ]
    prepared = made(rows, "alpaca")
    head = "<s>Below is an instruction that describes a task"
    tail = " Write a response that appropriately completes the request.\n\n### Instruction:\n"
    assert parts(prepared, 0) == [
        (
            False,
            f"{head}, paired with an input that provides further context.{tail}add\n\n### Input:\ntwo plus two"
            "\n\n### Response:\n",
        ),
        (True, "four</s>"),
    ]
    assert parts(prepared, 1) == [(False, f"{head}.{tail}say hello\n\n### Response:\n"), (True, "hello</s>")]


def test_completion_is_cut_into_windows_and_nothing_is_lost(made: Callable[..., Prepared]) -> None:
    text = "the quick brown fox jumps over the lazy dog " * 8
    prepared = made([{"text": text}, {"text": "hello"}], "completion", sequence_len=16)
    rows = [prepared.train.ids(row).tolist() for row in range(len(prepared.train))]
    whole = tokenizer_of(prepared)(text)["input_ids"] + [1]
    assert [index for row in rows[:-1] for index in row] == whole
    assert all(len(row) == 16 for row in rows[:-2])
    assert all((prepared.train.labels(row) == prepared.train.ids(row)).all() for row in range(len(rows)))
    assert parts(prepared, len(rows) - 1) == [(True, "<s>hello</s>")]


def test_completion_reads_the_named_column(made: Callable[..., Prepared]) -> None:
    prepared = made([{"body": "hello"}], "completion", dataset={"field": "body"})
    assert parts(prepared) == [(True, "<s>hello</s>")]


def test_rows_of_ids_pass_as_they_are(made: Callable[..., Prepared]) -> None:
    prepared = made([{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [-100, 6, 7]}], "alpaca")
    assert (prepared.train.ids(0).tolist(), prepared.train.labels(0).tolist()) == ([5, 6, 7], [-100, 6, 7])
    assert prepared.train.trained.tolist() == [2]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"input_ids": [5, 6]}, "needs both"),
        ({"input_ids": [5, 6], "labels": [5]}, "differ in length"),
        ({"input_ids": [5, 60_000], "labels": [5, 60_000]}, "tokenizer's size"),
        ({"input_ids": [5, 6, 7], "labels": [6, 7, -100]}, "not shifted"),
    ],
)
def test_ids_that_make_no_sense_are_refused(made: Callable[..., Prepared], row: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInputs, match=words) as caught:
        made([{"input_ids": [5, 6], "labels": [5, 6]}, row], "alpaca")
    assert caught.value.errors[0].line == 2


def test_a_misspelt_output_field_names_the_columns_there_are(made: Callable[..., Prepared]) -> None:
    rows = [{"synopsis": "a", "story": "b"}] * 7
    with pytest.raises(BadInputs) as caught:
        made(rows, {**STORY, "field_output": "storey"})
    [error] = caught.value.errors
    assert error.key == "datasets[0].type.field_output"
    assert "no column 'storey'; the columns are synopsis, story" in error.message
    assert "rows 1, 2, 3, 4, 5 and 2 more" in error.message
    assert (error.line, error.exit_code) == (1, 2)


def test_a_misspelt_input_field_is_not_read_as_rows_without_input(made: Callable[..., Prepared]) -> None:
    rows = [{"synopsis": "a", "story": "b"}, {"synopsis": "a", "story": "b", "context": "c"}]
    with pytest.raises(BadInputs, match="none of the first 2 rows has this column") as caught:
        made(rows, {**STORY, "field_input": "contxt"})
    assert caught.value.errors[0].key == "datasets[0].type.field_input"
    assert made(rows, {**STORY, "field_input": "context"})


def test_the_rows_that_lack_a_field_or_hold_null_are_named(made: Callable[..., Prepared]) -> None:
    rows = [
        {"synopsis": "a", "story": "b"},
        {"story": "b"},
        {"synopsis": "a", "story": None},
        {"synopsis": 1, "story": []},
    ]
    with pytest.raises(BadInputs) as caught:
        made(rows, STORY)
    assert [(error.line, error.key) for error in caught.value.errors] == [
        (2, "datasets[0].type.field_instruction"),
        (3, "datasets[0].type.field_output"),
        (4, "datasets[0].type.field_output"),
    ]
    assert "holds list, not text (row 4)" in caught.value.errors[2].message


def test_a_template_that_asks_for_what_it_does_not_get_is_refused(made: Callable[..., Prepared]) -> None:
    with pytest.raises(BadInputs) as caught:
        made([{"synopsis": "a", "story": "b"}], {**STORY, "no_input_format": "{question}", "format": "{instruction"})
    assert sorted(str(error.key) for error in caught.value.errors) == [
        "datasets[0].type.format", "datasets[0].type.no_input_format",
    ]  # fmt: skip
    assert "{instruction}" in str(caught.value.errors[1].allowed)


def test_a_row_with_nothing_to_train_is_an_error(made: Callable[..., Prepared]) -> None:
    rows = [{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [5, 6], "labels": [5, -100]}]
    with pytest.raises(BadInputs, match=r"no token of the row would be trained \(row 2\)"):
        made(rows, "alpaca")


def test_an_unknown_type_says_what_works() -> None:
    from dtrain.data.encode import Part, make_format

    class Nothing:
        fingerprint = ""

        def read(self, rows: list[int]) -> list[dict[str, Any]]:
            return [{"text": "x"}]

    from dtrain.config.load import loads

    config = loads(json.dumps({"base_model": "x", "micro_batch_size": 1, "datasets": [{"path": "x"}]})).config
    dataset = config.datasets[0].model_copy(update={"type": "alpaca:chat"})
    with pytest.raises(BadInput, match="dtrain does not know this type") as caught:
        make_format(Part(Nothing(), dataset, "datasets[0]", None), config, None, None)  # type: ignore[arg-type]
    assert "chat_template" in str(caught.value.allowed)
