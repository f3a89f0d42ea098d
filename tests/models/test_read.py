"""config.json files as people have them: nested, short of keys, broken, hostile."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.errors import BadInput
from dtrain.models.figures import family_defaults
from dtrain.models.read import FAMILIES, facts_from_config

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}


def wrong_in(config: dict[str, Any]) -> BadInput:
    with pytest.raises(BadInput) as caught:
        facts_from_config(config, "mine", "folder/config.json")
    assert caught.value.file == "folder/config.json"
    return caught.value


def test_facts_of_a_llama() -> None:
    facts = facts_from_config(LLAMA, "TinyLlama", "here")
    assert facts.parameters == facts.active_parameters == 1_100_048_384
    assert (facts.name, facts.family, facts.source) == ("TinyLlama", "llama", "here")
    assert (facts.hidden_size, facts.heads, facts.kv_heads, facts.head_dim) == (2048, 32, 4, 64)
    assert (facts.layer_count, facts.vocab_size, facts.max_positions) == (22, 32000, 2048)
    assert (facts.gated_mlp, facts.norm, facts.activation, facts.tied_embeddings) == (True, "rms", "silu", False)
    assert facts.config == LLAMA


def test_a_written_null_is_not_an_absent_key() -> None:
    said = {"model_type": "mistral", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8}
    absent = facts_from_config(said, "m", "here")
    null = facts_from_config({**said, "sliding_window": None, "num_key_value_heads": None}, "m", "here")
    assert ([layer.attention_window for layer, _ in absent.layers], absent.kv_heads) == ([4096], 8)
    assert ([layer.attention_window for layer, _ in null.layers], null.kv_heads) == ([None], 8)


def test_the_text_part_of_a_multimodal_model() -> None:
    inner = {**LLAMA, "model_type": "mistral"}
    nested = {"model_type": "mistral3", "tie_word_embeddings": True, "text_config": inner, "vision_config": {}}
    facts = facts_from_config(nested, "m", "here")
    assert facts.family == "mistral"
    assert facts.tied_embeddings
    assert facts.parameters == 1_100_048_384 - 32000 * 2048


def test_gemma_layers_slide_in_their_pattern() -> None:
    config = {"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 13, "sliding_window": 512}
    kinds = [(layer.attention_window, count) for layer, count in facts_from_config(config, "g", "here").layers]
    assert kinds == [(512, 11), (None, 2)]


def test_an_unknown_family_lists_the_known() -> None:
    error = wrong_in({**LLAMA, "model_type": "qwen2_mo"})
    assert error.key == "model_type"
    assert "nearest known is qwen2_moe" in error.message
    assert set(error.allowed.split(", ")) == set(FAMILIES)


@pytest.mark.parametrize("value", [None, 3, "", ["llama"]])
def test_a_config_without_a_family(value: Any) -> None:
    assert wrong_in({**LLAMA, "model_type": value}).key == "model_type"


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers"])
def test_a_model_must_say_its_width_and_depth(key: str) -> None:
    error = wrong_in({name: value for name, value in LLAMA.items() if name != key})
    assert error.key == key
    assert "missing" in error.message


@pytest.mark.parametrize("value", [-1, 0, 1.5, True, "64", [], {}, 10**30, math.nan])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_nonsense_names_the_key(key: str, value: Any) -> None:
    assert wrong_in({**LLAMA, key: value}).key == key


def test_heads_that_do_not_divide() -> None:
    assert wrong_in({**LLAMA, "num_attention_heads": 30, "num_key_value_heads": 30}).key == "hidden_size"
    assert wrong_in({**LLAMA, "num_key_value_heads": 5}).key == "num_key_value_heads"


def test_layer_types_of_the_wrong_length() -> None:
    config = {"model_type": "gemma2", "hidden_size": 64, "num_hidden_layers": 3, "layer_types": ["full_attention"]}
    assert wrong_in(config).key == "layer_types"


def test_more_experts_a_token_than_there_are() -> None:
    config = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 5}
    assert wrong_in(config).key == "num_experts_per_tok"


KEYS = sorted({key for defaults in family_defaults().values() for key in defaults})
EXTRA = ["layer_types", "mlp_only_layers", "text_config", "q_lora_rank", "n_inner", "num_kv_heads", "head_dim"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=400, deadline=None)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    size=st.sampled_from([{}, {"hidden_size": 64, "num_hidden_layers": 3, "n_layer": 3, "n_layers": 3, "d_model": 64}]),
    config=st.dictionaries(st.sampled_from([*KEYS, *EXTRA]), JSON, max_size=6),
)
def test_any_config_is_facts_or_a_bad_input(family: str, size: dict[str, Any], config: dict[str, Any]) -> None:
    config = {"model_type": family, **size, **config}
    try:
        facts = facts_from_config(config, "fuzz", "config.json")
    except BadInput:
        assert wrong_in(config).key is not None
    else:
        assert facts.parameters >= facts.active_parameters > 0
        assert facts.layer_count > 0
