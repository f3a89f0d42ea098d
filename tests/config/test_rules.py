from __future__ import annotations

from typing import Any

import pytest

from dtrain.config.launchable import NOT_YET, launch_refusals
from dtrain.config.load import dump, loads


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("batch_size: 4\ngradient_accumulation_steps: 2", "gradient_accumulation_steps"),
        ("global_batch_size: 8\nbatch_size: 4", "batch_size"),
        ("gradient_accumulation_steps: 2\nglobal_batch_size: 8", "global_batch_size"),
        ("warmup_steps: 5\nwarmup_ratio: 0.1", "warmup_ratio"),
        ("eval_steps: 5\nevals_per_epoch: 1\nval_set_size: 0.1", "evals_per_epoch"),
        ("saves_per_epoch: 1\nsave_steps: 5", "save_steps"),
        ("bf16: true\nfp16: true", "fp16"),
        ("bfloat16: true\nfloat16: true", "fp16"),
        ("adapter: lora\nload_in_8bit: true\nload_in_4bit: true", "load_in_4bit"),
        ("adapter: qlora", "adapter"),
        ("load_in_4bit: true", "load_in_4bit"),
        ("chat_template: jinja", "chat_template"),
        ("early_stopping_patience: 3", "early_stopping_patience"),
        ("early_stopping_patience: 3\nval_set_size: 0", "early_stopping_patience"),
        ("batch_size: 6\nmicro_batch_size: 4", "batch_size"),
        ("zero_stage: 2\noffload_params: cpu", "offload_params"),
        ("zero_stage: 0\noffload_optimizer: cpu", "offload_optimizer"),
        ("zero_stage: 1\nplan_as: {sharding: fsdp2}", "zero_stage"),
        ("warmup_steps: 0.1", "warmup_steps"),
    ],
)  # fmt: skip
def test_contradictions(said: str, key: str, errors: Any) -> None:
    found = errors(said + "\n")
    assert set(found) == {key}
    assert found[key].line >= 4
    assert found[key].fix or found[key].allowed


@pytest.mark.parametrize(
    "said",
    [
        "batch_size: 8\nmicro_batch_size: 4", "bf16: auto\nfp16: true", "adapter: qlora\nload_in_4bit: true",
        "chat_template: jinja\nchat_template_jinja: x", "early_stopping_patience: 3\nval_set_size: 0.1",
        "warmup_steps: 5\nwarmup_ratio: null", "zero_stage: 3\noffload_params: cpu", "batch_size: 5",
        "early_stopping_patience: 3\ntest_datasets: [{path: t}]",
    ],
)  # fmt: skip
def test_what_goes_together(said: str, config: Any) -> None:
    config(said + "\n")


def test_warmup_as_a_share_names_the_right_key(errors: Any) -> None:
    assert errors("warmup_steps: 0.1\n")["warmup_steps"].fix == "a share of the run is warmup_ratio: 0.1"


def test_a_flag_against_the_file_says_how_to_unset_it(errors: Any) -> None:
    found = errors("batch_size: 4\n", "gradient_accumulation_steps=2")["gradient_accumulation_steps"]
    assert "--set batch_size=null" in (found.fix or "")


def test_evaluations_without_data_are_told(config: Any) -> None:
    assert any("nothing is evaluated" in note for note in config("evals_per_epoch: 2\n").notes)
    assert not any("evaluated" in note for note in config("evals_per_epoch: 2\nval_set_size: 5\n").notes)


def test_launch_refuses_what_only_a_plan_can_do(config: Any) -> None:
    loaded = config("tensor_parallel_size: 1\noptimizer: adamw_torch_4bit\nplan_as: {sharding: fsdp2}\n")
    found = {error.key: error for error in launch_refusals(loaded)}
    assert set(found) == {"optimizer", "plan_as"}
    assert found["optimizer"].line == 5
    assert all(error.fix for error in found.values())


def test_launch_takes_the_defaults_and_every_key_it_may_refuse_exists() -> None:
    loaded = loads("base_model: x\ndatasets: [{path: a}]\n")
    assert launch_refusals(loaded) == []
    assert all(hasattr(loaded.config, key) for key, _, _ in NOT_YET)


def test_keys_without_effect_are_told_and_a_runs_own_file_stays_quiet(config: Any) -> None:
    said = config("lora_r: 16\nlora_alpha: 32\nlr_scheduler: constant\ncosine_min_lr_ratio: 0.1\nadam_beta2: 0.95\n")
    idle = [note for note in said.notes if note.startswith("without effect")]
    assert idle == [
        "without effect: lora_r, lora_alpha (there is no `adapter`: every weight is trained)",
        "without effect: cosine_min_lr_ratio (this `lr_scheduler` never decays)",
    ]
    assert not config("adapter: lora\nlora_r: 16\n").notes
    whole = loads(dump(config("").config))
    assert not whole.notes
