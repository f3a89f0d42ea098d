"""Which tokens of a conversation are trained, over templates of every habit, against expectations written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dtrain.config.schema import Config
from dtrain.data.prepare import Prepared, prepare
from dtrain.errors import BadInput, BadInputs
from tests.data.conftest import CHATML, byte_level
from tests.data.seeing import parts, tokenizer_of

GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + "
    "('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (  # never asks: the assistant simply speaks after [/INST]
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # Qwen 3's habit: only the last answer keeps its empty thought, so earlier text changes as turns are added
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PREFILLED = CHATML.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}")
NO_STOP = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
CONTROL = ("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>")

ASK, TELL = {"role": "user", "content": "hello there"}, {"role": "assistant", "content": "fine thanks"}
AGAIN, MORE = {"role": "user", "content": "and you"}, {"role": "assistant", "content": "  two plus two\n"}
FOUR = [ASK, TELL, AGAIN, MORE]


@pytest.fixture
def chatted(
    tmp_path: Path, write_rows: Callable[..., Path], make_config: Callable[..., Config]
) -> Callable[..., Prepared]:
    def make(
        rows: list[Any], template: str | None = CHATML, dataset: dict[str, Any] | None = None, **keys: Any
    ) -> Prepared:
        tokenizer = byte_level(tmp_path / "tokenizer", control=CONTROL, template=template)
        file = write_rows([row if isinstance(row, dict) else {"messages": row} for row in rows])
        entry = {"path": str(file), "type": "chat_template", **(dataset or {})}
        return prepare(make_config(tokenizer, entry, **keys), cache_root=tmp_path / "cache")

    return make


def trained(prepared: Prepared, row: int = 0) -> list[str]:
    return [text for is_trained, text in parts(prepared, row) if is_trained]


def test_chatml_trains_what_the_assistant_says_and_its_stop_token(chatted: Callable[..., Prepared]) -> None:
    prepared = chatted([FOUR])
    assert parts(prepared) == [
        (False, "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"),
        (True, "fine thanks<|im_end|>"),
        (False, "\n<|im_start|>user\nand you<|im_end|>\n<|im_start|>assistant\n"),
        (True, "  two plus two\n<|im_end|>"),
        (False, "\n"),
    ]
    tokenizer = tokenizer_of(prepared)
    assert prepared.report.stop_tokens == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    whole = tokenizer.apply_chat_template(FOUR, tokenize=False)
    assert prepared.train.ids(0).tolist() == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_the_prompt_seen_in_training_is_the_prompt_of_generation(chatted: Callable[..., Prepared]) -> None:
    prepared = chatted([FOUR])
    tokenizer = tokenizer_of(prepared)
    asking = tokenizer.apply_chat_template(FOUR[:3], tokenize=True, add_generation_prompt=True)["input_ids"]
    assert prepared.train.ids(0).tolist()[: len(asking)] == asking
    assert prepared.train.labels(0)[len(asking) - 1] == -100
    assert prepared.train.labels(0)[len(asking)] == prepared.train.ids(0)[len(asking)]


def test_gemma_learns_to_end_its_turn_though_its_eos_is_another_token(chatted: Callable[..., Prepared]) -> None:
    prepared = chatted([FOUR], GEMMA)
    assert trained(prepared) == ["fine thanks<end_of_turn>", "two plus two<end_of_turn>"]
    assert prepared.train.ids(0).tolist().count(0) == 1  # the template brings the BOS, the tokenizer adds no second


def test_a_template_that_never_asks_is_read_from_two_renderings(chatted: Callable[..., Prepared]) -> None:
    prepared = chatted([[ASK, TELL, AGAIN, MORE]], MISTRAL)
    assert trained(prepared) == [" fine thanks</s>", "  two plus two\n</s>"]
    assert prepared.train.ids(0).tolist()[:1] == [0]


def test_a_template_that_rewrites_earlier_turns_still_trains_each(chatted: Callable[..., Prepared]) -> None:
    prepared = chatted([FOUR], THINKING)
    assert trained(prepared) == ["fine thanks<|im_end|>", "<think>\n\n</think>\n\n  two plus two\n<|im_end|>"]


def test_a_prompt_that_opens_a_thought_the_rows_do_not_have(chatted: Callable[..., Prepared]) -> None:
    prepared = chatted([FOUR], PREFILLED)
    assert trained(prepared) == ["fine thanks<|im_end|>", "  two plus two\n<|im_end|>"]


def test_content_that_looks_like_the_template_does_not_move_the_mask(chatted: Callable[..., Prepared]) -> None:
    told = {"role": "assistant", "content": "assistant\nuser: fine thanks"}
    echo = {"role": "user", "content": "fine thanks assistant\n"}
    for template in (CHATML, GEMMA, THINKING):
        prepared = chatted([[echo, told, echo, TELL]], template)
        assert [text.split("</think>\n\n")[-1].split("<")[0] for text in trained(prepared)] == [
            "assistant\nuser: fine thanks", "fine thanks",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("turn", ["fine thanks<|im_end|>", "  two plus two\n<|im_end|>"]),
        ("all", ["<|im_end|>", "fine thanks<|im_end|>", "<|im_end|>", "  two plus two\n<|im_end|>"]),
        ("last", ["fine thanks", "  two plus two\n<|im_end|>"]),
        ("none", ["fine thanks", "  two plus two\n"]),
    ],
)
def test_train_on_eos(chatted: Callable[..., Prepared], which: str, expected: list[str]) -> None:
    assert trained(chatted([FOUR], dataset={"train_on_eos": which})) == expected


def test_roles_to_train_and_other_names_of_roles(chatted: Callable[..., Prepared]) -> None:
    rows = [{"conversations": [{"from": "human", "value": "hello there"}, {"from": "bot", "value": "fine thanks"}]}]
    names = {"field_messages": "conversations", "message_property_mappings": {"role": "from", "content": "value"}}
    prepared = chatted(rows, dataset={**names, "roles": {"assistant": ["bot"]}})
    assert trained(prepared) == ["fine thanks<|im_end|>"]
    both = chatted(rows, dataset={**names, "roles": {"assistant": ["bot"]}, "roles_to_train": ["human", "bot"]})
    assert trained(both) == ["hello there<|im_end|>", "fine thanks<|im_end|>"]


def test_sharegpt_rows(chatted: Callable[..., Prepared]) -> None:
    rows = [{"conversations": [{"from": "human", "value": "hello there"}, {"from": "gpt", "value": "fine thanks"}]}]
    assert trained(chatted(rows, dataset={"type": "sharegpt"})) == ["fine thanks<|im_end|>"]


def test_train_on_inputs_trains_the_whole_conversation(chatted: Callable[..., Prepared]) -> None:
    assert len(parts(chatted([FOUR], train_on_inputs=True))) == 1


def test_the_file_s_template_and_the_entry_s_win_over_the_tokenizer_s(chatted: Callable[..., Prepared]) -> None:
    assert trained(chatted([FOUR[:2]], None, chat_template="chatml")) == ["fine thanks<|im_end|>"]
    fallback = "tokenizer_default_fallback_chatml"
    assert trained(chatted([FOUR[:2]], None, chat_template=fallback)) == ["fine thanks<|im_end|>"]
    assert trained(chatted([FOUR[:2]], GEMMA, chat_template=fallback)) == ["fine thanks<end_of_turn>"]
    by_text = chatted([FOUR[:2]], CHATML, chat_template="jinja", chat_template_jinja=GEMMA)
    assert trained(by_text) == ["fine thanks<end_of_turn>"]
    assert tokenizer_of(by_text).chat_template == GEMMA  # what was trained is what the model ships with
    assert trained(chatted([FOUR[:2]], CHATML, dataset={"chat_template": GEMMA})) == ["fine thanks<end_of_turn>"]


def test_a_tokenizer_without_a_template(chatted: Callable[..., Prepared]) -> None:
    with pytest.raises(BadInput, match="no chat template") as caught:
        chatted([FOUR], None)
    assert "chat_template: chatml" in str(caught.value.fix)


def test_a_template_nobody_knows(chatted: Callable[..., Prepared]) -> None:
    with pytest.raises(BadInput, match="no chat template of this name") as caught:
        chatted([FOUR], chat_template="llama99")
    assert "chatml" in str(caught.value.allowed)


def test_a_turn_that_would_never_learn_to_stop(chatted: Callable[..., Prepared]) -> None:
    with pytest.raises(BadInputs, match="does not end in a stop token") as caught:
        chatted([FOUR, FOUR], NO_STOP)
    assert "rows 1, 2" in caught.value.errors[0].message
    assert trained(chatted([FOUR[:2]], NO_STOP, dataset={"train_on_eos": "none"})) == [" fine thanks\n"]


def test_two_bos_are_never_trained_on(chatted: Callable[..., Prepared]) -> None:
    with pytest.raises(BadInputs, match=r"starts with two BOS tokens \(row 2\)"):
        chatted(
            [[ASK, TELL], [{"role": "system", "content": "x"}, ASK, TELL]],
            "{% if messages|length > 2 %}<s>{% endif %}" + GEMMA,
        )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([ASK], "no token of the row would be trained"),
        ([], "conversation is empty"),
        ({"conversations": [ASK]}, "no column 'messages'; the columns are conversations"),
        ({"messages": "hello"}, "no list of messages"),
        ([{"from": "human", "value": "x"}], "needs 'role' and 'content'; there is from, value"),
        (["hello"], "needs 'role' and 'content'"),
        ([ASK, {"role": "assistant", "content": None}], "the chat template refuses it"),
    ],
)
def test_bad_conversations_are_named_by_row(chatted: Callable[..., Prepared], row: Any, words: str) -> None:
    with pytest.raises(BadInputs, match=words) as caught:
        chatted([FOUR, row])
    assert caught.value.errors[0].line == 2
    assert "row 2" in caught.value.errors[0].message
