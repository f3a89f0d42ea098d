"""Whatever a file holds: a Loaded or BadInput, never another exception."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtrain.config.axolotl import DATASET_KEYS, KEYS
from dtrain.config.load import dump, loads
from dtrain.config.schema import Config, Dataset, PromptFormat
from dtrain.errors import BadInput

QUICK = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = sorted({*Config.model_fields, *KEYS, *Dataset.model_fields, *DATASET_KEYS, *PromptFormat.model_fields, "extra"})

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["auto", "lora", "cpu", "true", "2e-5", "full", "sharegpt", "jinja", "none", "steps"])
)  # fmt: skip
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=6), inner),
    max_leaves=12,
)


def must_load_or_say_why(text: str, *sets: str) -> None:
    try:
        loaded = loads(text, "fuzz.yaml", sets)
    except BadInput as error:
        told = f"{error}{json.dumps(error.as_json(), default=str)}"
    else:
        told = dump(loaded.config)
        assert loads(told).config == loaded.config
    assert told


@QUICK
@given(st.text())
def test_any_text(text: str) -> None:
    must_load_or_say_why(text)


@QUICK
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#,?%@`~ \n\t<0.e", max_size=60))
def test_yaml_like_text(text: str) -> None:
    must_load_or_say_why(text)


@QUICK
@given(st.dictionaries(st.sampled_from(NAMES), trees, max_size=8))
def test_any_tree_under_known_names(tree: dict[str, Any]) -> None:
    valid = {"base_model": "x", "datasets": [{"path": "a"}]}
    must_load_or_say_why(json.dumps({**valid, **tree}))


@QUICK
@given(st.sampled_from(NAMES), trees)
def test_each_key_with_any_value(name: str, value: Any) -> None:
    must_load_or_say_why(json.dumps({"base_model": "x", "datasets": [{"path": "a", name: value}], name: value}))


@QUICK
@given(st.text(max_size=20), st.text(max_size=20))
def test_any_flag(key: str, value: str) -> None:
    must_load_or_say_why("base_model: x\ndatasets: [{path: a}]\n", f"{key}={value}", key)


@QUICK
@given(st.text(), st.text(), st.text(), trees)
def test_text_survives_a_dump(name: str, template: str, prompt: str, extra: Any) -> None:
    """Quotes, newlines, numbers that are text: a worker must read what the person said."""
    document = {
        "base_model": name, "datasets": [{"path": "a", "type": {"format": template}}], "sample_prompts": [prompt],
        "launchers": {"x": {"extra": extra}},
    }  # fmt: skip
    must_load_or_say_why(json.dumps(document))
