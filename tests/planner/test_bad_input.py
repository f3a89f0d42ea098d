"""What cannot be planned is told with a way out; what can be planned never breaks and never goes below zero."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.config.load import loads
from dtrain.errors import BadInput, BadInputs
from dtrain.hardware.profiles import resolve_profile
from dtrain.models.hub import load_facts
from dtrain.models.read import facts_from_config
from dtrain.planner.plan import Plan, make_plan
from tests.planner.layouts import facts

TINY = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
SHAPE: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 262_144,
}  # fmt: skip
CARD = {"name": "mine", "gpu": "mine-card", "gpus_per_node": 2, "memory_gib": 31.5, "tflops_bf16": 150}


SAID = (
    "", "sample_packing: true", "gradient_checkpointing: selective", "attention: eager", "cross_entropy: eager",
    "adapter: lora\ngradient_checkpointing: offload", "adapter: qlora\nload_in_4bit: true\nlora_target_linear: true",
    "plan_as: {sharding: fsdp2}\ncross_entropy: fused", "plan_as: {sharding: zero3}\ntorch_compile: true\nfp8: true",
    "plan_as: {sharding: ddp, master_weights: none, optimizer_in_backward: true}\ncross_entropy: chunked",
    "plan_as: {sharding: fsdp2, base_weights_dtype: fp32, replicate_size: 2}\nadapter: lora",
)  # fmt: skip
"""What a person may say beside the window."""


def plan(*lines: str, model: str = TINY, profile: str = "a100x8") -> Plan:
    loaded = loads("\n".join([f"base_model: {model}", "datasets: [{path: no/data, type: alpaca}]", *lines]))
    return make_plan(loaded, resolve_profile(profile), facts(model))


def told(error: pytest.ExceptionInfo[BadInput]) -> BadInput:
    """The one mistake, which must have a way out."""
    one = error.value.errors[0] if isinstance(error.value, BadInputs) else error.value
    assert one.fix or one.allowed, str(one)
    return one


def own_profile(folder: Path, **changes: Any) -> str:
    file = folder / "mine.yaml"
    file.write_text("\n".join(f"{key}: {value}" for key, value in (CARD | changes).items() if value is not None))
    return str(file)


def test_a_folder_without_config_json(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        load_facts(str(tmp_path), revision=None, config_dir=None)
    assert "config.json" in str(told(error))


def test_an_unknown_architecture() -> None:
    with pytest.raises(BadInput) as error:
        facts_from_config({**SHAPE, "model_type": "brontosaurus"}, "mine", "config.json")
    assert "brontosaurus" in str(told(error))


@pytest.mark.parametrize("profile", ["a100x0", "cpux0", "h100x8x0", "a100x-1", "a100x"])
def test_no_gpus(profile: str) -> None:
    with pytest.raises(BadInput) as error:
        resolve_profile(profile)
    told(error)


def test_a_profile_with_a_missing_figure_is_filled_and_said(tmp_path: Path) -> None:
    made = plan("sequence_len: 512", profile=own_profile(tmp_path, catalogue="5090"))
    assert made.fits
    assert any("pcie" in line.lower() or "catalogue" in line.lower() for line in made.warnings), made.warnings


@pytest.mark.parametrize(("key", "value"), [("gpus_per_node", 0), ("memory_gib", -3), ("memory_gib", "much")])
def test_a_profile_with_a_figure_that_cannot_be(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        resolve_profile(own_profile(tmp_path, **{key: value}))
    assert key in str(told(error))


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        (["sequence_parallel_size: 3"], "sequence_parallel_size"),
        (["global_batch_size: 30"], "global_batch_size"),
        (["batch_size: 6", "micro_batch_size: 4"], "micro_batch_size"),
        (["global_batch_size: 64", "batch_size: 4"], "batch_size"),
    ],
)
def test_what_cannot_be_divided(lines: list[str], key: str) -> None:
    with pytest.raises(BadInput) as error:
        plan(*lines)
    assert key in str(told(error))


def sane(made: Plan) -> None:
    figures = [value for phase in made.memory.phases for value in phase.terms.values()]
    figures += [*made.time.parts.values(), made.hours, made.memory.host_memory_gib]
    assert all(math.isfinite(value) and value >= 0 for value in figures)
    assert math.isclose(sum(made.memory.terms.values()), made.memory.peak_allocated, rel_tol=1e-9)
    assert math.isclose(sum(made.time.parts.values()), made.time.step_seconds, rel_tol=1e-9)
    assert made.memory.peak_allocated <= made.memory.peak_reserved <= made.memory.peak_smi
    assert made.memory.peak_low <= made.memory.peak <= made.memory.peak_high
    json.dumps(made.as_json(), allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    heads=st.sampled_from([1, 4, 8, 16]),
    per_head=st.sampled_from([8, 64, 128]),
    layers=st.integers(1, 100),
    inner=st.integers(1, 60_000),
    vocabulary=st.integers(2, 300_000),
    tied=st.booleans(),
    memory=st.floats(0.5, 300),
    speed=st.floats(1, 5000),
    gpus=st.integers(1, 16),
    window=st.integers(2, 200_000),
    lines=st.sampled_from(SAID),
)
def test_any_shape_on_any_machine(
    heads: int, per_head: int, layers: int, inner: int, vocabulary: int, tied: bool, memory: float, speed: float,
    gpus: int, window: int, lines: str, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    shape = SHAPE | {
        "hidden_size": heads * per_head, "num_attention_heads": heads, "num_key_value_heads": 1,
        "num_hidden_layers": layers, "intermediate_size": inner, "vocab_size": vocabulary, "tie_word_embeddings": tied,
    }  # fmt: skip
    file = own_profile(
        tmp_path_factory.mktemp("profile"), memory_gib=memory, tflops_bf16=speed, gpus_per_node=gpus, catalogue="4090"
    )
    loaded = loads(f"base_model: x/y\ndatasets: [{{path: no/data, type: alpaca}}]\nsequence_len: {window}\n{lines}")
    known, machine = facts_from_config(shape, "mine", "config.json"), resolve_profile(file)
    sane(make_plan(loaded, machine, known))


@settings(max_examples=30, deadline=None)
@given(layers=st.integers(1, 60), window=st.integers(16, 16_000), micro=st.integers(1, 32))
def test_memory_grows_with_parameters_window_and_micro_batch(layers: int, window: int, micro: int) -> None:
    def peak(layers: int, window: int, micro: int) -> float:
        known = facts_from_config(SHAPE | {"num_hidden_layers": layers}, "mine", "config.json")
        lines = f"sequence_len: {window}\nmicro_batch_size: {micro}\nzero_stage: 2\ngradient_checkpointing: full\n"
        loaded = loads(f"base_model: x/y\ndatasets: [{{path: no/data, type: alpaca}}]\n{lines}")
        return make_plan(loaded, resolve_profile("h100x8"), replace(known)).memory.peak_allocated

    least = peak(layers, window, micro)
    assert peak(layers + 1, window, micro) > least
    assert peak(layers, window + 64, micro) > least
    assert peak(layers, window, micro + 1) > least


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        (("adapter: qlora", "load_in_4bit: true", "offload_params: cpu"), "offload_params"),
        (("plan_as: {sharding: ddp}", "offload_optimizer: cpu"), "offload_optimizer"),
    ],
)
def test_what_no_stage_can_offload(lines: tuple[str, ...], key: str) -> None:
    with pytest.raises(BadInput) as error:
        plan(*lines)
    assert told(error).key == key


@pytest.mark.parametrize(("adapter", "why"), [("", "cannot be trained"), ("adapter: lora", "merged into")])
def test_a_base_that_is_published_quantised(tmp_path: Path, adapter: str, why: str) -> None:
    published = SHAPE | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(published))
    loaded = loads(f"base_model: {tmp_path}\ndatasets: [{{path: no/data, type: alpaca}}]\n{adapter}\n")
    with pytest.raises(BadInput, match="gptq") as error:
        make_plan(loaded, resolve_profile("a100x8"), load_facts(str(tmp_path)))
    found = told(error)
    assert (found.key, found.value) == ("base_model", str(tmp_path))
    assert why in found.message


def test_dora_needs_whole_matrices() -> None:
    dora = ("adapter: lora", "peft_use_dora: true")
    with pytest.raises(BadInput, match="whole rows") as error:
        plan(*dora, "zero_stage: 3")
    assert told(error).key == "zero_stage"
    assert plan(*dora, profile="4090x2").choice.zero_stage < 3


def test_a_base_that_was_trained_with_sparse_attention(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | {"dtrain_attention": {"segment_memory": 64}}))

    def warnings(line: str) -> str:
        loaded = loads(f"base_model: {tmp_path}\ndatasets: [{{path: no/data, type: alpaca}}]\n{line}\n")
        return "\n".join(make_plan(loaded, resolve_profile("a100x8"), load_facts(str(tmp_path))).warnings)

    assert "was trained with segment_memory: 64" in warnings("")
    assert "was trained with" not in warnings("segment_memory: 64")
