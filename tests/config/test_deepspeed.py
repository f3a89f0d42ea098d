from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dtrain import assets
from dtrain.config.deepspeed_file import AutoValues, fill_auto, of, pins
from dtrain.config.deepspeed_read import AXOLOTL_FILES, KNOWN_KEYS
from dtrain.config.load import dump, load, loads
from dtrain.errors import BadInputs

SHIPPED = sorted((assets.root() / "ds_configs").glob("*.json"))
VALUES = AutoValues(
    micro_batch_size=2, gradient_accumulation_steps=4, train_batch_size=64, max_grad_norm=1.0, learning_rate=2e-5,
    betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, bf16=True, fp16=False, warmup_steps=5, total_steps=100,
    hidden_size=2048,
)  # fmt: skip


def test_seven_ship() -> None:
    assert [path.stem for path in SHIPPED] == [
        "zero0", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "zero3_offload_optimizer",
    ]  # fmt: skip


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_each_shipped_file_pins_what_its_name_says(path: Path, config: Any) -> None:
    loaded = config(f"deepspeed: ds_configs/{path.name}\n")
    assert loaded.config.zero_stage == int(path.stem[4])
    assert loaded.config.offload_optimizer == ("cpu" if "offload" in path.stem else "none")
    assert loaded.config.offload_params == ("cpu" if path.stem == "zero3_offload" else "none")
    origin = loaded.origin("zero_stage")
    assert '"stage"' in path.read_text().splitlines()[(origin.line or 0) - 1]
    assert loads(dump(loaded.config)).config == loaded.config
    document = json.loads(path.read_text())
    assert {"gradient_clipping", "zero_optimization", "bf16", "fp16"} <= set(document) <= KNOWN_KEYS
    assert "auto" not in json.dumps(fill_auto(document, VALUES)).replace("auto_cast", "")


@pytest.mark.parametrize("name", AXOLOTL_FILES)
def test_axolotls_names_are_found_with_a_note(name: str, config: Any) -> None:
    loaded = config(f"deepspeed: deepspeed_configs/{name}\n")
    assert loaded.config.zero_stage == int(name[4])
    assert any("ds_configs/" in note for note in loaded.notes)


def test_the_users_own_file_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{\n\t"zero_optimization": {\n\t\t"stage": 2\n\t}\n}\n')
    (tmp_path / "a.yaml").write_text("base_model: x\ndatasets: [{path: a}]\ndeepspeed: ds.json\n")
    loaded = load(tmp_path / "a.yaml")
    assert loaded.config.zero_stage == 2
    assert loaded.origin("zero_stage").text() == f"{tmp_path / 'ds.json'}:3"
    found = of(loaded.config)
    assert found is not None
    assert found.document == {"zero_optimization": {"stage": 2}}


def test_explicit_keys_must_agree(config: Any, errors: Any) -> None:
    found = errors("zero_stage: 2\ndeepspeed: ds_configs/zero3.json\n")["zero_stage"]
    assert found.line == 4
    assert "zero3.json:" in found.message
    assert errors("deepspeed: ds_configs/zero3_offload.json\noffload_params: none\n")["offload_params"]
    assert config("zero_stage: 3\ndeepspeed: ds_configs/zero3.json\n").config.zero_stage == 3
    loaded = config("deepspeed: {zero_optimization: {stage: 3}}\noffload_optimizer: cpu\n")
    assert (loaded.config.offload_optimizer, loaded.config.offload_params) == ("cpu", "none")


@pytest.mark.parametrize(
    ("said", "key", "words"),
    [
        ("nope.json", "deepspeed", "no such file"),
        ("{zero_optimisation: {}}", "deepspeed.zero_optimisation", "not a key"),
        ("{pipeline: {stages: 2}}", "deepspeed.pipeline", "does not run"),
        ("{zero_optimization: {stage: 4}}", "deepspeed.zero_optimization.stage", "not a ZeRO stage"),
        (
            "{zero_optimization: {stage: 3, offload_param: {device: gpu}}}",
            "deepspeed.zero_optimization.offload_param.device",
            "not a device",
        ),
        ("[1]", "deepspeed", "a list is not allowed"),
    ],
)
def test_wrong_documents(said: str, key: str, words: str, errors: Any) -> None:
    assert words in errors(f"deepspeed: {said}\n")[key].message


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1,}', '{"bf16": {}, "bf16": {}}', "\xff"])
def test_files_that_are_no_deepspeed_config(text: str, tmp_path: Path, errors: Any) -> None:
    path = tmp_path / "ds.json"
    path.write_bytes(text.encode("latin-1"))
    assert all(error.file == str(path) for error in errors(f"deepspeed: {path}\n").values())


def test_pins_of_an_empty_document_are_deepspeeds_defaults() -> None:
    found = pins({})
    assert (found.zero_stage, found.offload_optimizer, found.offload_params) == (0, "none", "none")


def test_auto_is_filled_by_transformers_table() -> None:
    auto = "auto"
    filled = fill_auto(
        {
            "train_batch_size": auto, "train_micro_batch_size_per_gpu": auto, "gradient_accumulation_steps": auto,
            "gradient_clipping": auto, "bf16": {"enabled": auto}, "fp16": {"enabled": auto},
            "optimizer": {"type": "AdamW", "params": {"lr": auto, "betas": auto, "eps": auto, "weight_decay": auto}},
            "scheduler": {"type": "WarmupDecayLR", "params": {
                "warmup_min_lr": auto, "warmup_max_lr": auto, "warmup_num_steps": auto, "total_num_steps": auto}},
            "zero_optimization": {"stage": 3, "reduce_bucket_size": auto, "stage3_prefetch_bucket_size": auto,
                "stage3_param_persistence_threshold": auto},
        },
        VALUES,
    )  # fmt: skip
    assert filled == {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
        "optimizer": {"type": "AdamW", "params": {"lr": 2e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}},
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {"warmup_min_lr": 0, "warmup_max_lr": 2e-5, "warmup_num_steps": 5, "total_num_steps": 100},
        },
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": 2048**2,
            "stage3_prefetch_bucket_size": int(0.9 * 2048**2),
            "stage3_param_persistence_threshold": 20480,
        },
    }


def test_all_disagreements_at_once_and_free_values_kept() -> None:
    document = {
        "gradient_clipping": 0.5,
        "bf16": {"enabled": False},
        "train_batch_size": 3,
        "optimizer": {"params": {"lr": 1e-3}},
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 5, "sub_group_size": "auto"},
        "train_micro_batch_size_per_gpu": 2,
    }
    with pytest.raises(BadInputs) as caught:
        fill_auto(document, VALUES)
    assert {error.key for error in caught.value.errors} == {
        "deepspeed.gradient_clipping", "deepspeed.bf16.enabled", "deepspeed.train_batch_size",
        "deepspeed.optimizer.params.lr", "deepspeed.zero_optimization.sub_group_size",
    }  # fmt: skip
    assert document["gradient_clipping"] == 0.5


def test_what_is_not_known_is_left_to_the_engine() -> None:
    unknown = replace(VALUES, hidden_size=None)
    assert fill_auto({"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}}, unknown) == {
        "zero_optimization": {"stage": 3}
    }


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ("{optimizer: {type: Muon}}", "optimizer.type"),
        ("{optimizer: {type: Lion}}", "optimizer.type"),
        ("{optimizer: {type: AdamW, params: {lr: 0.1}}}", "optimizer.params.lr"),
        ("{scheduler: {type: WarmupLR}}", "scheduler.type"),
        ("{gradient_clipping: 3.0}", "gradient_clipping"),
    ],
)
def test_disagreements_are_told_when_the_file_is_loaded(document: str, key: str, errors: Any) -> None:
    found = errors(f"seed: 1\ndeepspeed: {document}\n")[f"deepspeed.{key}"]
    assert found.line == 5
    assert found.fix


def test_the_same_values_are_fine(config: Any) -> None:
    config(
        "learning_rate: 1e-3\nlr_scheduler: linear\noptimizer: adamw_bnb_8bit\nmax_grad_norm: 3\n"
        "deepspeed: {optimizer: {type: AdamW, params: {lr: 0.001, betas: [0.9, 0.999], torch_adam: true}},"
        " scheduler: {type: WarmupDecayLR}, gradient_clipping: 3.0}\n"
    )


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        ("paged_adamw_8bit", "AdamW"),
        ("lion_32bit", "Lion"),
        ("paged_lion_8bit", "Lion"),
        ("muon", "Muon"),
        ("sgd", "SGD"),
    ],
)
def test_optimizers_under_deepspeeds_names(optimizer: str, kind: str, config: Any) -> None:
    config(f"optimizer: {optimizer}\ndeepspeed: {{optimizer: {{type: {kind}}}}}\n")


def test_masters_are_the_configs_to_say(config: Any, errors: Any) -> None:
    said = "deepspeed: {bf16: {bf16_master_weights_and_grads: true, bf16_optimizer_states: true}}\n"
    assert config(f"master_weights: bf16\n{said}")
    assert errors(said).keys() == {
        "deepspeed.bf16.bf16_master_weights_and_grads",
        "deepspeed.bf16.bf16_optimizer_states",
    }
    sums = "deepspeed: {data_types: {grad_accum_dtype: fp32}}\n"
    assert config(sums)
    assert "master_weights" in errors(f"master_weights: bf16\n{sums}")["deepspeed.data_types.grad_accum_dtype"].fix


def test_batch_sizes_of_the_document_are_pins(config: Any, errors: Any) -> None:
    loaded = config(
        "deepspeed: {train_micro_batch_size_per_gpu: 2, gradient_accumulation_steps: 3, train_batch_size: 48}\n"
    )
    assert (loaded.config.micro_batch_size, loaded.config.gradient_accumulation_steps) == (2, 3)
    assert loaded.config.global_batch_size is None
    assert loads(dump(loaded.config)).config == loaded.config
    assert config("deepspeed: {train_batch_size: 48}\n").config.global_batch_size == 48
    assert config("batch_size: 8\ndeepspeed: {gradient_accumulation_steps: 2}\n").config.batch_size == 8
    assert errors("micro_batch_size: 4\ndeepspeed: {train_micro_batch_size_per_gpu: 2}\n")["micro_batch_size"]
    assert errors("gradient_accumulation_steps: 4\ndeepspeed: {gradient_accumulation_steps: 2}\n")


def test_known_keys_are_deepspeeds_own() -> None:
    """Every zero_optimization key of the shipped files is a field of DeepSpeed's own model."""
    zero = pytest.importorskip("deepspeed.runtime.zero.config").DeepSpeedZeroConfig
    known = {*zero.model_fields, *(field.alias for field in zero.model_fields.values())}
    for path in SHIPPED:
        assert set(json.loads(path.read_text())["zero_optimization"]) <= known
