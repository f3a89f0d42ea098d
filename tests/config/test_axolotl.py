from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dtrain.config.alias import Alias, Lookalike, Refused
from dtrain.config.axolotl import DATASET_KEYS, KEYS
from dtrain.config.launchable import launch_refusals
from dtrain.config.schema import Config, Dataset, GradientCheckpointingKwargs, SpecialTokens

AXOLOTL = json.loads((Path(__file__).parent / "axolotl_keys.json").read_text())


def test_the_list_is_whole() -> None:
    assert len(AXOLOTL["examples"]) == 246
    assert len(AXOLOTL["schema"]) > 450


@pytest.mark.parametrize("name", sorted({*AXOLOTL["examples"], *AXOLOTL["schema"], *AXOLOTL["legacy"]}))
def test_every_top_level_key_is_classified(name: str) -> None:
    assert name in KEYS or name in Config.model_fields


@pytest.mark.parametrize("name", AXOLOTL["datasets"])
def test_every_dataset_key_is_classified(name: str) -> None:
    assert name in DATASET_KEYS or name in Dataset.model_fields


@pytest.mark.parametrize("name", sorted(set(KEYS) - set(Config.model_fields)))
def test_no_key_is_dropped_in_silence(name: str, config: Any) -> None:
    """Null or false: a note, at least. (Lookalikes are typos, so they are errors whatever they say.)"""
    if isinstance(KEYS[name], Lookalike):
        with pytest.raises(Exception, match="did you mean"):
            config(f"{name}: null\n")
        return
    assert any(name in note for note in config(f"{name}: null\n").notes)
    if not isinstance(KEYS[name], Alias):
        assert any(name in note for note in config(f"{name}: false\n").notes)


@pytest.mark.parametrize("name", sorted(name for name, rule in KEYS.items() if isinstance(rule, Refused)))
def test_refused_keys_say_what_would_have_happened(name: str, errors: Any) -> None:
    error = errors(f"{name}: [3]\n")[name]
    assert "had it been ignored" in error.message
    assert error.line == 4
    assert error.fix


def test_translations_point_at_keys_that_exist() -> None:
    for table, model in ((KEYS, Config), (DATASET_KEYS, Dataset)):
        for rule in table.values():
            to = getattr(rule, "meant", None) or (getattr(rule, "to", None) if not hasattr(rule, "how") else None)
            assert to is None or to.split(".")[0] in model.model_fields


@pytest.mark.parametrize(
    ("said", "key", "value"),
    [
        ("sequence_length: 64", "sequence_len", 64),
        ("sequence_parallel_degree: 2", "sequence_parallel_size", 2),
        ("context_parallel_size: 4", "sequence_parallel_size", 4),
        ("flash_attention: true", "attention", "flash_attention_2"),
        ("flash_attention: false", "attention", "auto"),
        ("xformers_attention: true", "attention", "sdpa"),
        ("sdp_attention: true", "attention", "sdpa"),
        ("attn_implementation: flex_attention", "attention", "flex"),
        ("attn_implementation: xformers", "attention", "sdpa"),
        ("attn_implementation: flash_attention_2", "attention", "flash_attention_2"),
        ("attn_implementation: kernels-community/vllm-flash-attn3", "attention", "flash_attention_3"),
        ("gradient_checkpointing: true", "gradient_checkpointing", "full"),
        ("gradient_checkpointing: false", "gradient_checkpointing", "none"),
        ("gradient_checkpointing: offload", "gradient_checkpointing", "offload"),
        ("gradient_checkpointing: true\nactivation_offloading: true", "gradient_checkpointing", "offload"),
        ("activation_offloading: legacy\ngradient_checkpointing: true", "gradient_checkpointing", "offload"),
        ("selective_checkpointing: true\ngradient_checkpointing: true", "gradient_checkpointing", "selective"),
        ("bfloat16: true", "bf16", True),
        ("float16: true", "fp16", True),
        ("float32: true", "bf16", False),
        ("type_of_model: LlamaForCausalLM", "model_type", "LlamaForCausalLM"),
        ("model_revision: abc", "revision_of_model", "abc"),
        ("optimizer: adamw_8bit", "optimizer", "adamw_bnb_8bit"),
        ("optimizer: ao_adamw_4bit", "optimizer", "adamw_torch_4bit"),
        ("lr_scheduler: warmup_stable_decay", "lr_scheduler", "wsd"),
        ("eval_max_new_tokens: 7", "sample_max_new_tokens", 7),
        ("chunked_cross_entropy: true\nchunked_cross_entropy_num_chunks: 8", "cross_entropy_chunks", 8),
        ("save_strategy: epoch", "saves_per_epoch", 1),
        ("eval_strategy: epoch\nval_set_size: 0.1", "evals_per_epoch", 1),
        ("evaluation_strategy: steps\neval_steps: 5\nval_set_size: 0.1", "eval_steps", 5),
        ("evals_per_epoch: 0", "evals_per_epoch", None),
        ("adapter: ''", "adapter", None),
        ("bnb_config_kwargs: {bnb_4bit_use_double_quant: false}", "bnb_4bit_use_double_quant", False),
        ("fsdp: [full_shard, auto_wrap]", "zero_stage", 3),
        ("fsdp: shard_grad_op auto_wrap", "zero_stage", 2),
        ("fsdp_config: {reshard_after_forward: true}", "zero_stage", 3),
        ("fsdp_config: {fsdp_sharding_strategy: NO_SHARD}", "zero_stage", 0),
        ("fsdp_config: {auto_wrap_policy: TRANSFORMER_BASED_WRAP}", "zero_stage", 3),
        ("fsdp_config: {offload_params: true}", "offload_params", "cpu"),
        ("fsdp: [full_shard, offload]", "offload_optimizer", "cpu"),
        ("fsdp_config: {activation_checkpointing: true}", "gradient_checkpointing", "full"),
    ],
)
def test_spellings(said: str, key: str, value: Any, config: Any) -> None:
    loaded = config(said + "\n")
    assert getattr(loaded.config, key) == value
    assert type(getattr(loaded.config, key)) is type(value)


def test_an_alias_keeps_its_line_and_is_told(config: Any) -> None:
    loaded = config("seed: 1\ncontext_parallel_size: 2\n")
    origin = loaded.origin("sequence_parallel_size")
    assert (origin.line, origin.said_as) == (5, "context_parallel_size")
    assert any("`context_parallel_size` is read as `sequence_parallel_size`" in note for note in loaded.notes)


def test_two_spellings_that_differ_are_an_error_and_equal_ones_are_not(config: Any, errors: Any) -> None:
    found = errors("sequence_len: 64\nsequence_length: 128\n")["sequence_length"]
    assert found.line == 5
    assert "64" in found.message
    assert "128" in found.message
    assert config("sequence_len: 64\nsequence_length: 64\n").config.sequence_len == 64
    assert errors("zero_stage: 1\nfsdp: [full_shard]\n")["fsdp"].line == 5
    assert config("bf16: auto\nbfloat16: true\n").config.bf16 is True
    assert errors("attention: sdpa\nflash_attention: true\n")["flash_attention"]


def test_tokens_as_mapping_and_as_list(config: Any) -> None:
    assert config("tokens: {bos_token: <s>}\n").config.special_tokens.bos_token == "<s>"
    loaded = config("tokens: ['<|im_start|>']\n")
    assert loaded.config.tokens == ["<|im_start|>"]
    assert loaded.config.special_tokens is None


def test_sharegpt_becomes_a_chat_template(config: Any) -> None:
    row = config("    type: sharegpt.load_role\n").config.datasets[0]
    assert (row.type, row.field_messages) == ("chat_template", "conversations")
    assert row.message_property_mappings.model_dump() == {"role": "from", "content": "value"}


def test_old_message_fields(config: Any) -> None:
    loaded = config("    type: chat_template\n    message_field_role: who\n    message_field_content: text\n")
    assert loaded.config.datasets[0].message_property_mappings.model_dump() == {"role": "who", "content": "text"}
    assert loaded.origin("datasets[0].message_property_mappings.role").line == 5


@pytest.mark.parametrize("kind", ["alpca", "dpo.chatml", "alpaca:phi", "stepwise_supervised"])
def test_unknown_dataset_types_are_errors(kind: str, errors: Any) -> None:
    assert errors(f"    type: {kind}\n")["datasets[0].type"].value == kind


@pytest.mark.parametrize(
    ("slip", "meant"),
    [("adam_eps: 1e-9", "adam_epsilon"), ("eta_min: 0.1", "cosine_min_lr_ratio"),
     ("context_parapllel_size: 2", "sequence_parallel_size"), ("max_seq_length: 9", "sequence_len")],
)  # fmt: skip
def test_lookalikes(slip: str, meant: str, errors: Any) -> None:
    key = slip.split(":")[0]
    assert errors(slip + "\n")[key].fix == f"did you mean `{meant}`?"


def test_plugins_that_pick_kernels_pass_and_others_do_not(config: Any, errors: Any) -> None:
    assert any("plugins" in note for note in config("plugins: [axolotl.integrations.liger.LigerPlugin]\n").notes)
    assert (
        errors("plugins: [axolotl.integrations.kd.KDPlugin]\n")["plugins"].value == "axolotl.integrations.kd.KDPlugin"
    )


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("save_strategy: best", "save_strategy"),
        ("save_strategy: 'no'\nsave_steps: 3", "save_strategy"),
        ("eval_strategy: epoch\neval_steps: 5\nval_set_size: 0.1", "eval_strategy"),
        ("save_safetensors: false", None),
        ("expert_parallel_size: 2", "expert_parallel_size"),
        ("base_model_config: other", "base_model_config"),
        ("fsdp: [half_shard]", "fsdp"),
        ("fsdp_config: {offload_param: true}", "fsdp_config.offload_param"),
        ("fsdp_config: 3", "fsdp_config"),
        ("bnb_config_kwargs: {llm_int8_threshold: 6}", "bnb_config_kwargs.llm_int8_threshold"),
        ("activation_offloading: disk", "activation_offloading"),
        ("eval_sequence_len: 9", "eval_sequence_len"),
        ("resume_from_checkpoint: x", "resume_from_checkpoint"),
    ],
)
def test_what_cannot_be_honoured(said: str, key: str | None, config: Any, errors: Any) -> None:
    if key is None:
        assert any("save_safetensors" in note for note in config(said + "\n").notes)
    else:
        assert key in errors(said + "\n")


@pytest.mark.parametrize(
    "said", ["save_safetensors: true", "expert_parallel_size: 1", "base_model_config: x", "metric_for_best_model: loss",
             "sequence_len: 9\neval_sequence_len: 9"],
)  # fmt: skip
def test_values_that_are_what_happens_anyway(said: str, config: Any) -> None:
    name = said.split("\n")[-1].split(":")[0]
    assert any(name in note for note in config(said + "\n").notes)


def test_nested_keys_of_axolotl_are_known(config: Any) -> None:
    nested = AXOLOTL["nested"]
    assert set(nested["special_tokens"]) <= set(SpecialTokens.model_fields)
    assert set(nested["tokens"]) <= set(SpecialTokens.model_fields)
    assert set(nested["gradient_checkpointing_kwargs"]) <= set(GradientCheckpointingKwargs.model_fields)
    for key in nested["fsdp_config"]:
        config(f"fsdp_config: {{{key}: null}}\n" if "strategy" not in key else f"fsdp_config: {{{key}: FULL_SHARD}}\n")
    for outer in ("device_map", "accelerator_config", "flex_attn_compile_kwargs"):
        assert any(outer in note for note in config(f"{outer}: {{a: 1}}\n").notes)


def test_a_template_of_axolotls_is_planned_and_not_launched(config: Any) -> None:
    loaded = config("chat_template: gemma3\n", "datasets[0].chat_template=llama3")
    assert any("`chat_template: gemma3` is a file of Axolotl's" in note for note in loaded.notes)
    assert [error.key for error in launch_refusals(loaded)] == ["chat_template", "datasets[0].chat_template"]
    assert not launch_refusals(config("chat_template: chatml\n"))
    assert config("chat_template:\n").config.chat_template is None


def test_what_files_in_the_wild_say(config: Any, errors: Any) -> None:
    loaded = config("deepspeed: false\nadapter: false\nrope_scaling: {rope_type: yarn, factor: 2}\n")
    assert loaded.config.deepspeed is loaded.config.adapter is None
    assert loaded.config.rope_scaling.type == "yarn"
    found = errors("    conversation: chatml\n    type: chatml\n")
    assert all("chat_template: chatml" in error.fix for error in found.values())
