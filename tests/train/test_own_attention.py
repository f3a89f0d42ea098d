"""A folder of a model with sparse attention says so, and `dtrain generate` attends as the training did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the training road needs dtrain[train]")
pytest.importorskip("deepspeed", reason="the training road needs dtrain[train]")

import torch
import transformers

from dtrain.config.schema import AttentionPattern
from dtrain.train import generate, own_attention
from dtrain.train.attention import UNLIMITED, Sight
from dtrain.train.attention_pattern import dense_mask
from tests.e2e.materials import write_tokenizer

LENGTH = 24
PATTERN = AttentionPattern(kind="longformer", window=4, global_tokens=1)
SIGHTS = {"pattern": Sight(pattern=PATTERN), "memory": Sight(memory=6)}


def allowed(sight: Sight) -> torch.Tensor:
    """(LENGTH, LENGTH) booleans: what each place sees, written down without the code of the training."""
    place = torch.arange(LENGTH)
    query, key = place[:, None], place[None, :]
    if sight.memory is None:
        mask = dense_mask(PATTERN, LENGTH, torch.device("cpu"))
        assert mask is not None
        return mask
    return (key <= query) & (query // sight.memory - key // sight.memory <= 1)


def write_model(folder: Path) -> None:
    torch.manual_seed(3)
    described = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, bos_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(described).save_pretrained(folder)
    write_tokenizer(folder, None)


@pytest.mark.parametrize("kind", SIGHTS)
def test_generate_sees_what_training_saw(tmp_path: Path, kind: str) -> None:
    write_model(tmp_path)
    own_attention.mark(tmp_path, SIGHTS[kind])
    assert own_attention.sight_in(tmp_path) == SIGHTS[kind]
    assert "does not know this key" in (tmp_path / "README.md").read_text()
    ids = torch.arange(2, 2 + LENGTH)[None]
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    bias = torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~allowed(SIGHTS[kind]), float("-inf"))
    with torch.no_grad():
        wanted = plain(input_ids=ids, attention_mask=bias).logits
        model = generate.read_model(tmp_path)
        assert torch.allclose(model(input_ids=ids, use_cache=False).logits, wanted, atol=1e-5)
        assert not torch.allclose(plain(input_ids=ids).logits, wanted, atol=1e-3)
        told = generate.write(model, generate.read_tokenizer(tmp_path), ids[0].tolist(), "", generate.Sampling(4))
        assert told.tokens >= 1
        first = generate_greedily(model, ids)
    assert first == int(wanted[0, -1].argmax())


def generate_greedily(model: torch.nn.Module, ids: torch.Tensor) -> int:
    """The first new token."""
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0)  # type: ignore[operator]
    return int(out[0, LENGTH])


def test_full_attention_takes_the_word_back(tmp_path: Path) -> None:
    write_model(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    own_attention.mark(tmp_path, UNLIMITED)
    assert json.loads((tmp_path / "config.json").read_text()) == before
    own_attention.mark(tmp_path, SIGHTS["memory"])
    own_attention.mark(tmp_path, UNLIMITED)
    assert json.loads((tmp_path / "config.json").read_text()) == before
    assert own_attention.honoured(tmp_path) == {}
