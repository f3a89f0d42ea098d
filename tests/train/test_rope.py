"""`rope_scaling` gives the model that transformers makes from the same config.json, and its folder carries it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dtrain.config.schema import Config
from dtrain.errors import BadInput
from dtrain.train import rope
from dtrain.train.model import read_config

IDS = torch.arange(60)[None]
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "linear": ({"factor": 2.0}, {}, 64),
    "dynamic": ({"factor": 4.0}, {}, 32),
    "yarn": ({"factor": 2.0, "beta_fast": 16.0}, {"original_max_position_embeddings": 32}, 64),
    "llama3": (
        {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, {"original_max_position_embeddings": 32}, 64,
    ),
}  # fmt: skip
"""What a person says, what transformers wants besides, and the positions that follow from 32."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    described = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=96,
        max_position_embeddings=32, rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(described).save_pretrained(tmp_path)
    return tmp_path


def config(folder: Path, kind: str) -> Config:
    said = {"type": kind, **KINDS[kind][0]}
    return Config.model_validate({"base_model": str(folder), "datasets": [{"path": "x"}], "rope_scaling": said})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_as_transformers_does_from_its_own_config(folder: Path, kind: str, tmp_path: Path) -> None:
    said, besides, positions = KINDS[kind]
    plainly = logits(transformers.AutoModelForCausalLM.from_pretrained(folder))
    ours = transformers.AutoModelForCausalLM.from_pretrained(folder, config=read_config(config(folder, kind), folder))
    rope.forget_rows(ours)
    ours.save_pretrained(tmp_path / "out")
    document = json.loads((folder / "config.json").read_text())
    document["rope_parameters"] = {"rope_type": kind, "rope_theta": 500.0, **said, **besides}
    document["max_position_embeddings"] = positions
    (folder / "config.json").write_text(json.dumps(document))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=0)
    assert not torch.allclose(logits(ours), plainly, atol=1e-4)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.config.max_position_embeddings == positions
    torch.testing.assert_close(logits(again), logits(ours), rtol=0, atol=0)


def test_dynamic_frequencies_follow_from_the_row_alone(folder: Path) -> None:
    """transformers would keep those of the longer row for a shorter one beyond the original positions."""
    ours = transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=read_config(config(folder, "dynamic"), folder)
    )
    rope.forget_rows(ours)
    short = IDS[:, :40]
    with torch.no_grad():
        first = ours(input_ids=short, use_cache=False).logits
        ours(input_ids=IDS, use_cache=False)
        again = ours(input_ids=short, use_cache=False).logits
    torch.testing.assert_close(again, first, rtol=0, atol=0)


def test_a_model_published_with_a_scaling_is_scaled_from_its_original_positions(folder: Path) -> None:
    document = json.loads((folder / "config.json").read_text())
    document["rope_parameters"] = {"rope_type": "llama3", "rope_theta": 500.0, **KINDS["llama3"][0], "factor": 8.0}
    document["rope_parameters"]["original_max_position_embeddings"] = 4
    (folder / "config.json").write_text(json.dumps(document))
    described = read_config(config(folder, "yarn"), folder)
    assert described.max_position_embeddings == 8
    assert described.rope_parameters["original_max_position_embeddings"] == 4
    assert "low_freq_factor" not in described.rope_parameters


def test_rows_of_a_model_that_rotates_by_the_longest_are_not_mixed() -> None:
    described = transformers.Phi3Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128, pad_token_id=0,
        original_max_position_embeddings=32,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
            "factor": 4.0, "original_max_position_embeddings": 32,
        },
    )  # fmt: skip
    rope.refuse_mixed_rows(described, window=32, shares_rows=True)
    rope.refuse_mixed_rows(described, window=128, shares_rows=False)
    with pytest.raises(BadInput, match="beyond 32 tokens"):
        rope.refuse_mixed_rows(described, window=33, shares_rows=True)
