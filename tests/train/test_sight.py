"""How far a token looks back: windows and chunks of models, patterns and segment memory of the config, in every back
end that runs here, against transformers' own masks, dense masks, and a loop over segments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from dtrain.config.schema import AttentionPattern
from dtrain.train import attention
from dtrain.train.attention import Sight
from dtrain.train.attention_flex import flex_by_document
from dtrain.train.attention_pattern import dense_mask
from dtrain.train.model import implementation
from tests.train.test_attention import SMALL

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 6},
    "mixtral": {"sliding_window": 6, "num_local_experts": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen2_moe": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0, **EXPERTS},
    "qwen3": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 6},
    "gemma3_text": {"head_dim": 8, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "cohere2": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "olmo3": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"], "pad_token_id": 0},
    "phi3": {"sliding_window": 6, "pad_token_id": 0},
    "phimoe": {"sliding_window": 6, "num_local_experts": 4},
    "starcoder2": {"sliding_window": 6},
    "gpt_oss": {"head_dim": 8, "sliding_window": 6, "num_local_experts": 4},
    "llama4_text": {
        "head_dim": 8, "attention_chunk_size": 8, "no_rope_layers": [1, 0], "num_local_experts": 4,
        "intermediate_size_mlp": 64, "layer_types": ["chunked_attention", "full_attention"], "pad_token_id": 0,
    },
}  # fmt: skip
LENGTHS = (23, 14)


def pair(family: str) -> tuple[Any, Any]:
    """The same random weights under transformers' eager attention with its own masks, and under ours."""
    attention.register()
    told = SMALL | {"num_key_value_heads": 2} | FAMILIES[family]
    described = transformers.AutoConfig.for_model(family, **told)
    models = []
    for name in ("eager", implementation(described, "sdpa")):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(described, attn_implementation=name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.2)
        models.append(model.eval())
    return models[0], models[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_models_keep_their_windows_and_chunks(family: str) -> None:
    """Two documents in one row under ours; each alone under transformers' eager attention and masks."""
    reference, ours = pair(family)
    ids = torch.randint(0, 96, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    with torch.no_grad():
        together = ours(input_ids=ids, position_ids=positions, document_lengths=LENGTHS, use_cache=False).logits
        alone = torch.cat([reference(input_ids=part, use_cache=False).logits for part in ids.split(LENGTHS, 1)], dim=1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4 * alone.abs().max().item())


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    scores = (q @ k.repeat_interleave(2, 1).transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(~mask, float("-inf"))
    out: torch.Tensor = scores.softmax(-1) @ v.repeat_interleave(2, 1)
    return out.transpose(1, 2)


def random_qkv(total: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, heads, total, 8, generator=generator) for heads in (4, 2, 2))


PATTERNS = [
    AttentionPattern(kind="sliding", window=7),
    AttentionPattern(kind="longformer", window=5, global_tokens=3),
    AttentionPattern(kind="bigbird", window=4, global_tokens=2, random_blocks=2, block_tokens=4, seed=3),
]


def by_definition(pattern: AttentionPattern, length: int) -> torch.Tensor:
    """Position by position, in words of the papers. Random blocks are read off the first column of each pair."""
    drawn = dense_mask(pattern, 64, torch.device("cpu"))
    mask = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(i + 1):
            near, is_global = i - j < pattern.window, j < pattern.global_tokens
            far = pattern.random_blocks > 0 and i // pattern.block_tokens > j // pattern.block_tokens + 1
            mask[i, j] = near or is_global or (far and bool(drawn[i, j]))
    return mask


UNCOMPILED = pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
"""Its plain formula: the mask is ours and the same, the fused kernel needs CUDA."""


@UNCOMPILED
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.kind)
def test_a_pattern_is_its_dense_mask_in_every_document(pattern: AttentionPattern) -> None:
    q, k, v = random_qkv(sum(LENGTHS))
    whole = torch.block_diag(*(dense_mask(pattern, length, q.device).float() for length in LENGTHS)).bool()
    reference = plain(q, k, v, whole)
    for call in (attention.sdpa_by_document, flex_by_document):
        ours, _ = call(torch.nn.Module(), q, k, v, document_lengths=LENGTHS, asked=Sight(pattern=pattern))
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


def test_patterns_are_what_they_are_called() -> None:
    sliding, longformer, bigbird = (dense_mask(one, 40, torch.device("cpu")) for one in PATTERNS)
    assert torch.equal(sliding, by_definition(PATTERNS[0], 40))
    assert torch.equal(longformer, by_definition(PATTERNS[1], 40))
    without = dense_mask(AttentionPattern(kind="longformer", window=4, global_tokens=2), 40, torch.device("cpu"))
    assert not (without & ~bigbird).any()
    blocks = (bigbird & ~without).view(10, 4, 10, 4).any(3).any(1)  # blocks with something seen only by the draw
    assert blocks.sum(1).max() == 2
    assert blocks[5:].any(1).all()
    assert torch.equal(bigbird[:20, :20], dense_mask(PATTERNS[2], 20, torch.device("cpu")))


@UNCOMPILED
@pytest.mark.parametrize("sight", [Sight(), Sight(window=6), Sight(chunk=8)], ids=["causal", "window", "chunk"])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_flex_gives_what_sdpa_gives(sight: Sight, softcap: float | None) -> None:
    q, k, v = random_qkv(sum(LENGTHS))
    told: dict[str, Any] = {"document_lengths": LENGTHS, "asked": sight, "softcap": softcap}
    ours, _ = flex_by_document(torch.nn.Module(), q, k, v, **told)
    reference, _ = attention.sdpa_by_document(torch.nn.Module(), q, k, v, **told)
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)


def test_segment_memory_is_transformer_xls_recurrence() -> None:
    """A loop over segments, each a forward pass of its own with the keys and values of the one before, detached."""
    described = transformers.AutoConfig.for_model("llama", **SMALL, num_key_value_heads=2)
    attention.register(Sight(memory=8))
    ids = torch.randint(0, 96, (1, 29), generator=torch.Generator().manual_seed(1))

    def model(name: str) -> Any:
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(described, attn_implementation=name)

    try:
        ours = model(attention.SDPA)
        loss = ours(input_ids=ids, use_cache=False).logits.logsumexp(-1).sum()
        loss.backward()
        reference = model("eager")
        total = sum(segment_losses(reference, ids, 8))
    finally:
        attention.register()
    total.backward()  # type: ignore[union-attr]
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=0)
    plainly = model("eager")
    plainly(input_ids=ids, use_cache=False).logits.logsumexp(-1).sum().backward()
    for one, two in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-4)
    differs = [
        not torch.allclose(one.grad, two.grad, rtol=1e-3)
        for one, two in zip(ours.parameters(), plainly.parameters(), strict=True)
    ]
    assert all(differs[1:])


def segment_losses(model: Any, ids: torch.Tensor, memory: int) -> list[torch.Tensor]:
    from transformers import DynamicCache

    losses: list[torch.Tensor] = []
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    for start in range(0, ids.shape[1], memory):
        part = ids[:, start : start + memory]
        cache = DynamicCache()
        for layer, (key, value) in enumerate(before):
            cache.update(key, value, layer)
        held = memory if before else 0
        mask = torch.ones(part.shape[1], held + part.shape[1], dtype=torch.bool).tril(held)
        bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None]
        positions = torch.arange(start, start + part.shape[1])[None]
        logits = model(
            input_ids=part, position_ids=positions, past_key_values=cache, attention_mask=bias, use_cache=True
        ).logits
        losses.append(logits.logsumexp(-1).sum())
        before = [(one.keys[:, :, -memory:].detach(), one.values[:, :, -memory:].detach()) for one in cache.layers]
    return losses
