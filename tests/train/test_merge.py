"""An adapter merged tensor by tensor is what peft makes of the whole model; what files cannot give goes that way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the training road needs dtrain[train]")
pytest.importorskip("deepspeed", reason="the training road needs dtrain[train]")

import torch

from tests.e2e.materials import write_tokenizer

LLAMA: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96,
    "tie_word_embeddings": False,
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], bool]] = {
    "lora": ("llama", {}, {}, True),
    "rslora, another rank": ("llama", {}, {"use_rslora": True, "r": 6, "lora_alpha": 9}, True),
    "dora": ("llama", {}, {"use_dora": True}, True),
    "tied head": ("llama", {"tie_word_embeddings": True}, {}, True),
    "a head trained whole": ("llama", {}, {"modules_to_save": ["lm_head"]}, True),
    "matrices that lie the other way, dora": (
        "gpt2", {}, {"target_modules": ["c_attn", "c_fc"], "use_dora": True, "fan_in_fan_out": True}, True,
    ),
    "fused experts": ("mixtral", {"num_local_experts": 2, "num_key_value_heads": 4}, {}, False),
}  # fmt: skip
"""Family, its config, the adapter's, whether the files are enough."""


def described(family: str, more: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    if family == "gpt2":
        return AutoConfig.for_model(
            "gpt2", n_embd=32, n_layer=2, n_head=4, vocab_size=96, bos_token_id=0, eos_token_id=0
        )
    return AutoConfig.for_model(family, **(LLAMA | more))


def make(folder: Path, family: str, more: dict[str, Any], told: dict[str, Any]) -> Path:
    """A base and an adapter of random numbers on it."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(described(family, more)).save_pretrained(folder / "base", max_shard_size="20KB")
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    model.add_adapter(LoraConfig(**({"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | told)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif parameter.requires_grad:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
    model.save_pretrained(folder / "adapter")
    write_tokenizer(folder / "adapter", None)
    return folder / "adapter"


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings=True.*:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_is_what_peft_merges(tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForCausalLM

    from dtrain.train import adapters
    from dtrain.train.merge import LARGEST_CHANGE, Merging, logits_of, merge

    family, more, told, streams = CASES[name]
    adapter = make(tmp_path, family, more, told)
    assert (Merging.of(adapter) is not None) is streams
    change = merge(adapter, tmp_path / "out", shard_bytes=20_000)
    assert change < LARGEST_CHANGE
    tuned = adapters.read(adapter, torch.float32).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        assert (logits_of(tuned) - logits_of(merged)).abs().max() < 1e-4
        plain = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval())
        assert (logits_of(merged) - plain).abs().max() > 1e-2  # the adapter does something


def test_a_wrong_merge_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dtrain.errors import RunFailed
    from dtrain.train import merge

    adapter = make(tmp_path, "llama", {}, {})
    monkeypatch.setattr(merge.LowRank, "onto", lambda self, weight: weight)
    with pytest.raises(RunFailed, match="merging changes the logits"):
        merge.merge(adapter, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))
