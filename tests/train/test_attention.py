"""Documents in one row stay apart: against a dense mask, and on real models of many families."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dtrain.config.schema import Config
from dtrain.errors import BadInput
from dtrain.train import attention, attention_choice
from dtrain.train.loss import LossModel
from dtrain.train.model import LEAK, decide_layout, implementation, leak, self_test

LENGTHS = (5, 1, 17, 9)
ROOT = Path(__file__).resolve().parents[2]


def dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, softcap: float | None, scale: float
) -> torch.Tensor:
    """(1, T, H, D) by one masked softmax over the whole row."""
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    place = torch.arange(len(document))
    distance = place[:, None] - place[None, :]
    allowed = (document[:, None] == document[None, :]) & (distance >= 0)
    if window is not None:
        allowed &= distance < window
    groups = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(groups, 1).transpose(2, 3) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    return (weights @ v.repeat_interleave(groups, 1)).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 4, 100])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_document_by_document_equals_a_dense_mask(window: int | None, softcap: float | None, kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    q = torch.randn(1, 4, total, 8, generator=generator)
    k, v = (torch.randn(1, kv_heads, total, 8, generator=generator) for _ in range(2))
    ours, _ = attention.sdpa_by_document(
        torch.nn.Module(), q, k, v, scaling=0.3, sliding_window=window, softcap=softcap, document_lengths=LENGTHS
    )
    torch.testing.assert_close(ours, dense(q, k, v, window, softcap, 0.3), rtol=1e-4, atol=1e-5)


SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96,
    "max_position_embeddings": 64,
}  # fmt: skip
PADDED: dict[str, dict[str, Any]] = {
    "stablelm": {"num_key_value_heads": 2},
    "falcon": {"alibi": False},
    "gptj": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "rotary_dim": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "bloom": {"n_head": 4, "n_layer": 2},
}
"""Models whose attention is their own, or whose layers keep what they are told from it."""
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 6},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma": {"num_key_value_heads": 1, "head_dim": 8},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 3.0},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6},
    "phi": {"num_key_value_heads": 4},
    "phi3": {"num_key_value_heads": 2, "pad_token_id": 0},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.3},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 4.0},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64},
    "gpt_neox": {},
    "olmo2": {"num_key_value_heads": 2},
    "starcoder2": {"num_key_value_heads": 2},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}


def tiny(family: str, back_end: str) -> Any:
    attention.register()
    torch.manual_seed(0)
    described = transformers.AutoConfig.for_model(family, **(SMALL | (FAMILIES | PADDED)[family]))
    model = transformers.AutoModelForCausalLM.from_config(
        described, attn_implementation=implementation(described, back_end)
    )
    with torch.no_grad():  # larger weights, so that a leak shows in the loss
        for parameter in model.parameters():
            parameter.mul_(5)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_two_documents_in_one_row_have_the_loss_each_has_alone(family: str) -> None:
    model = tiny(family, "sdpa")
    run = LossModel(model)
    assert self_test(run, run, "flat", torch.device("cpu")) < 1e-4
    assert self_test(run, run, "padded", torch.device("cpu")) < 1e-4
    assert leak(run, run, torch.device("cpu")) < LEAK / 10


def config(**said: Any) -> Config:
    return Config.model_validate({"base_model": "x", "datasets": [{"path": "x"}], **said})


@pytest.mark.parametrize("family", PADDED)
def test_a_model_that_cannot_be_flat_is_padded_and_never_packed(family: str) -> None:
    run = LossModel(tiny(family, "sdpa"))
    assert decide_layout(run, run, config(), torch.device("cpu"), torch.float32) == "padded"
    with pytest.raises(BadInput, match="packed rows would see each other"):
        decide_layout(run, run, config(sample_packing=True), torch.device("cpu"), torch.float32)


def test_the_self_test_catches_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same model with an attention that forgets where documents end."""
    model = tiny("llama", "sdpa")
    run = LossModel(model)
    honest = attention.sdpa_by_document

    def leaks(*args: Any, document_lengths: Any = None, **kwargs: Any) -> Any:
        return honest(*args, **kwargs)

    transformers.AttentionInterface.register(attention.SDPA, leaks)
    try:
        assert self_test(run, run, "flat", torch.device("cpu")) > 1e-3
        assert leak(run, run, torch.device("cpu")) > 10 * LEAK
        with torch.no_grad():  # of the usual size again, and in bf16, where the losses alone are too coarse to tell
            for parameter in model.bfloat16().parameters():
                parameter.div_(5)
        assert leak(run, run, torch.device("cpu")) > 5 * LEAK
        assert self_test(run, run, "flat", torch.device("cpu")) < 2e-2
        with pytest.raises(BadInput, match="self-test"):
            decide_layout(run, run, config(sample_packing=True), torch.device("cpu"), torch.float32)
    finally:
        attention.register()


def test_an_argument_that_would_change_the_result_is_not_dropped() -> None:
    q = torch.randn(1, 2, 4, 8)
    with pytest.raises(BadInput, match="position_bias"):
        attention.sdpa_by_document(torch.nn.Module(), q, q, q, position_bias=torch.zeros(2))


def test_auto_on_a_cpu_takes_sdpa_and_says_what_the_better_ones_need() -> None:
    taken, passed_over = attention_choice.choose("auto", torch.device("cpu"), torch.float32)
    assert taken == "sdpa"
    assert [line.partition(":")[0] for line in passed_over] == list(attention_choice.BEST_FIRST[:-1])


def test_a_pinned_back_end_that_cannot_run_is_refused() -> None:
    with pytest.raises(BadInput, match="needs a CUDA GPU"):
        attention_choice.choose("varlen", torch.device("cpu"), torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", attention_choice.BEST_FIRST)
def test_a_gpu_kernel_is_right_or_says_why_not(name: str) -> None:
    reason = attention_choice.why_not(name, torch.device("cuda"), torch.bfloat16)
    assert reason is None or "needs" in reason, reason


def test_a_broken_flash_attn_breaks_no_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.train.broken_flash", str(tmp_path)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told.pop("attends with") == "dtrain_by_document"
    assert "libcudart.so.11.0" in told["cannot be imported"]
    assert "undefined symbol" in told["built for another torch"]
    assert "flash_attn_varlen_func" in told["another version"]
    assert "Ampere" in told["another GPU"]
    assert "differ from the reference" in told["wrong numbers"]
