"""Every family against the model transformers builds from the same config, on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from dtrain.models.figures import family_defaults
from dtrain.models.read import FAMILIES, facts_from_config
from tests.models import meta

SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
GPT = {"vocab_size": 320, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 50}
FALCON = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
OPT = {**FALCON, "ffn_dim": 96, "word_embed_proj_dim": 64}
LATENT = {
    **SMALL,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 24,
    "v_head_dim": 20,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "n_group": 2,
    "topk_group": 1,
}
SPARSE = {**GROUPED, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
LOCAL = {**GROUPED, "num_local_experts": 8, "num_experts_per_tok": 3}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", SMALL),
    ("llama", {**GROUPED, "attention_bias": True, "mlp_bias": True, "head_dim": 24, "tie_word_embeddings": True}),
    ("mistral", GROUPED),
    ("mistral", {**GROUPED, "sliding_window": None, "head_dim": 32}),
    ("qwen2", GROUPED),
    ("qwen2", {**GROUPED, "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 3}),
    ("qwen3", {**GROUPED, "tie_word_embeddings": True}),
    ("qwen3", {**GROUPED, "attention_bias": True, "head_dim": 20, "use_sliding_window": True, "max_window_layers": 5}),
    ("gemma", GROUPED),
    ("gemma2", GROUPED),
    ("gemma2", {**GROUPED, "attention_bias": True, "tie_word_embeddings": False, "sliding_window": 16}),
    ("gemma3_text", GROUPED),
    ("gemma3_text", {**GROUPED, "num_hidden_layers": 13, "sliding_window": 16, "sliding_window_pattern": 4}),
    ("olmo", SMALL),
    ("olmo2", GROUPED),
    ("olmo3", GROUPED),
    ("granite", {**GROUPED, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("smollm3", GROUPED),
    ("smollm3", {**GROUPED, "use_sliding_window": True, "sliding_window": 32, "attention_bias": True}),
    ("phi3", {**GROUPED}),
    ("phi3", {**SMALL, "sliding_window": 64, "tie_word_embeddings": True}),
    ("phi", SMALL),
    ("phi", {**GROUPED, "qk_layernorm": True}),
    ("stablelm", GROUPED),
    ("stablelm", {**GROUPED, "use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True}),
    ("starcoder2", GROUPED),
    ("starcoder2", {**GROUPED, "use_bias": False, "tie_word_embeddings": False, "sliding_window": 48}),
    ("cohere", GROUPED),
    ("cohere", {**GROUPED, "use_qk_norm": True, "attention_bias": True}),
    ("gpt2", GPT),
    ("gpt2", {**GPT, "n_inner": 100, "tie_word_embeddings": False}),
    ("gptj", {**GPT, "rotary_dim": 8}),
    ("gpt_neox", SMALL),
    ("gpt_neox", {**SMALL, "attention_bias": False, "use_parallel_residual": False, "tie_word_embeddings": True}),
    ("opt", OPT),
    ("opt", {**OPT, "word_embed_proj_dim": 32, "do_layer_norm_before": False}),
    ("opt", {**OPT, "enable_bias": False, "layer_norm_elementwise_affine": False, "tie_word_embeddings": False}),
    ("bloom", {"vocab_size": 320, "hidden_size": 64, "n_layer": 3, "n_head": 4}),
    ("mpt", {"vocab_size": 320, "d_model": 64, "n_layers": 3, "n_heads": 4}),
    ("mpt", {"vocab_size": 320, "d_model": 64, "n_layers": 3, "n_heads": 4, "no_bias": False}),
    ("falcon", FALCON),
    ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 100}),
    ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    ("falcon", {**FALCON, "multi_query": False, "parallel_attn": False, "bias": True, "alibi": True}),
    ("mixtral", {**LOCAL, "head_dim": 20}),
    ("mixtral", {**LOCAL, "sliding_window": 64}),
    ("olmoe", {**SPARSE, "attention_bias": True}),
    ("granitemoe", {**LOCAL, "tie_word_embeddings": True}),
    ("gpt_oss", {**LOCAL, "sliding_window": 16, "head_dim": 24}),
    ("qwen2_moe", {**SPARSE, "shared_expert_intermediate_size": 56}),
    ("qwen2_moe", {**SPARSE, "qkv_bias": False, "decoder_sparse_step": 2, "mlp_only_layers": [3]}),
    ("qwen2_moe", {**SPARSE, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 4}),
    ("qwen3_moe", SPARSE),
    ("qwen3_moe", {**SPARSE, "mlp_only_layers": [0, 2], "use_sliding_window": True, "head_dim": 20}),
    ("deepseek_v2", {**LATENT, "q_lora_rank": None, "first_k_dense_replace": 1}),
    ("deepseek_v2", {**LATENT, "q_lora_rank": 24, "attention_bias": True}),
    ("deepseek_v3", {**LATENT, "q_lora_rank": 24, "first_k_dense_replace": 3}),
]
IDS = [f"{family}-{sum(1 for other, _ in CASES[:index] if other == family)}" for index, (family, _) in enumerate(CASES)]


def test_every_family_has_a_case() -> None:
    assert {family for family, _ in CASES} == set(FAMILIES)


@pytest.mark.parametrize(("family", "config"), CASES, ids=IDS)
def test_counts_equal_the_real_model(family: str, config: dict[str, Any]) -> None:
    config = {"model_type": family, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **config}
    model = meta.build(config)
    for said in (config, meta.config_of(model)):
        facts = facts_from_config(said, family, "config.json")
        assert facts.parameters == meta.parameters(model)
        assert meta.planned_kinds(facts) == meta.real_kinds(model)
        assert facts.layer_count == len(meta.blocks(model))
        windows = meta.real_windows(model)
        if windows is not None:
            assert sorted(map(str, meta.planned_windows(facts))) == sorted(map(str, windows))


@pytest.mark.parametrize(("family", "config"), CASES, ids=IDS)
def test_the_parts_outside_the_blocks_are_where_they_belong(family: str, config: dict[str, Any]) -> None:
    config = {"model_type": family, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **config}
    model = meta.build(config)
    facts = facts_from_config(config, family, "config.json")
    head, embedding = meta.ends(model)
    tied = head.weight is embedding.weight
    assert facts.tied_embeddings is tied
    assert facts.head_parameters == sum(p.numel() for p in head.parameters()) - (head.weight.numel() if tied else 0)
    assert facts.embedding_parameters >= embedding.weight.numel()
    blocks = sum(p.numel() for p in meta.blocks(model).parameters())
    assert sum(layer.parameters * count for layer, count in facts.layers) == blocks


def test_shipped_defaults_are_those_of_transformers() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    assert set(family_defaults()) == set(FAMILIES)
    for family, defaults in family_defaults().items():
        real = {field: getattr(CONFIG_MAPPING[family], field) for field in defaults}
        assert defaults == real, family


def test_active_parameters_of_a_mixture_leave_out_idle_experts() -> None:
    facts = facts_from_config({"model_type": "mixtral", **LOCAL}, "m", "config.json")
    idle = 7 * (8 - 3) * 3 * 64 * 96  # layers × idle experts × three matrices
    assert facts.active_parameters == facts.parameters - idle
