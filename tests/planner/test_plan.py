"""A plan as people and scripts get it: the contract's document, obedience to pins, reasons, and ways out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.cli.main import cli
from dtrain.config.launchable import can_launch
from dtrain.config.load import load, loads
from dtrain.config.origins import Loaded
from dtrain.errors import BadInput, BadInputs, DoesNotFit
from dtrain.hardware.profiles import resolve_profile
from dtrain.planner.choose import DIMENSIONS
from dtrain.planner.nearest import require_fit, ways_out
from dtrain.planner.plan import Plan, make_plan
from tests.planner.layouts import facts

LLAMA = "meta-llama/Llama-3.1-8B"
TINY = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"


def said(*lines: str, model: str = TINY) -> Loaded:
    return loads("\n".join([f"base_model: {model}", "datasets: [{path: no/data, type: alpaca}]", *lines]))


def plan(*lines: str, model: str = TINY, profile: str = "a100x8") -> Plan:
    return make_plan(said(*lines, model=model), resolve_profile(profile), facts(model))


CONTRACT: dict[str, Any] = {
    "schema_version": None, "versions": {"dtrain", "torch", "deepspeed", "transformers"}, "config": None,
    "warnings": None, "reasons": None, "model": {"name", "parameters", "trainable_parameters"},
    "profile": {"name", "gpu", "gpus", "gpus_per_node", "nodes", "capacity_gib"}, "fits": None,
    "within_headroom": None,
    "choice": {
        "zero_stage", "offload_optimizer", "offload_params", "micro_batch_size", "gradient_accumulation_steps",
        "global_batch_size", "gradient_checkpointing", "sequence_parallel_size", "attention", "cross_entropy",
        "precision", "optimizer", "adapter", "sequence_len",
    },
    "memory_gib": {
        "weights", "gradients", "optimizer", "activations", "logits", "buffers", "runtime", "peak_allocated",
        "peak_reserved", "peak_smi", "peak", "peak_low", "peak_high", "headroom",
    },
    "peak_phase": None, "phases": None, "host_memory_gib": None,
    "throughput": {"step_seconds", "tokens_per_second", "tokens_per_second_per_gpu", "mfu"},
    "schedule": {"steps", "tokens", "source"}, "hours": None,
    "cost_usd": {"provider", "usd_per_hour", "total", "priced_on"},
}  # fmt: skip
TERMS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "runtime")


def check_contract(document: dict[str, Any]) -> None:
    for key, inside in CONTRACT.items():
        assert key in document
        assert inside is None or inside <= set(document[key]), key
    memory = document["memory_gib"]
    assert math.isclose(sum(memory[name] for name in TERMS), memory["peak_allocated"], rel_tol=1e-6)
    assert memory["peak"] == memory["peak_smi"]
    phase = next(one for one in document["phases"] if one["name"] == document["peak_phase"])
    assert math.isclose(sum(phase["terms"].values()), memory["peak_allocated"], rel_tol=1e-6)
    assert document["fits"] or not document["within_headroom"]


def test_the_document_of_the_contract() -> None:
    document = json.loads(json.dumps(plan().as_json()))
    check_contract(document)
    assert document["schedule"]["source"] == "estimated"
    assert any("ASSUME" in line for line in document["warnings"])


@given(
    profile=st.sampled_from(["cpu", "cpux4", "t4x1", "4090x1", "a100x8", "h100x8x2", "b200x8"]),
    model=st.sampled_from([TINY, LLAMA, "openai-community/gpt2", "Qwen/Qwen3-30B-A3B"]),
    window=st.sampled_from([64, 1000, 1024]),
    lines=st.lists(
        st.sampled_from([
            "gradient_checkpointing: true", "zero_stage: 3", "optimizer: adamw_bnb_8bit", "sample_packing: true",
            "bf16: false", "cross_entropy: eager", "attention: eager", "max_steps: 10", "val_set_size: 0.1",
            "adapter: lora", "torch_compile: true",
        ]),
        unique=True,
    ),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_config_on_any_machine(profile: str, model: str, window: int, lines: list[str]) -> None:
    made = plan(*lines, f"sequence_len: {window}", model=model, profile=profile)
    check_contract(made.as_json())
    assert made.hours > 0
    if made.layouts > 1 and made.accepted:
        assert made.within_headroom


def test_pins_are_obeyed() -> None:
    made = plan(
        "zero_stage: 1", "gradient_checkpointing: selective", "attention: sdpa", "cross_entropy: eager",
        "offload_optimizer: none", "micro_batch_size: 2", "global_batch_size: 64",
    )  # fmt: skip
    choice = made.choice
    assert (choice.zero_stage, choice.gradient_checkpointing, choice.attention) == (1, "selective", "sdpa")
    assert (choice.cross_entropy, choice.micro_batch_size, choice.gradient_accumulation_steps) == ("eager", 2, 4)


def test_a_deepspeed_file_pins() -> None:
    made = plan("deepspeed: ds_configs/zero3.json")
    assert made.choice.zero_stage == 3


def test_what_auto_takes_is_what_launch_can_run() -> None:
    for profile in ("cpu", "a100x1", "a100x8", "4090x2"):
        choice = plan("micro_batch_size: auto", profile=profile).choice
        assert [key for key in DIMENSIONS if not can_launch(key, getattr(choice, key))] == []
        assert choice.cross_entropy == "chunked"


@pytest.mark.parametrize(
    ("profile", "lines", "precision"),
    [
        ("a100x1", [], "bf16"), ("t4x1", [], "fp16"), ("cpu", [], "fp32"), ("cpu", ["bf16: true"], "bf16"),
        ("a100x1", ["bf16: false"], "fp32"), ("a100x1", ["bf16: false", "tf32: true"], "tf32"),
    ],
)  # fmt: skip
def test_precision_by_card(profile: str, lines: list[str], precision: str) -> None:
    assert plan(*lines, profile=profile).choice.precision == precision


def test_a_cpu_takes_the_simplest_stage() -> None:
    assert plan(model="openai-community/gpt2", profile="cpu").choice.zero_stage == 0


def test_the_same_plan_twice() -> None:
    assert plan(model=LLAMA).as_json() == plan(model=LLAMA).as_json()


def test_a_neighbour_is_named_with_its_price() -> None:
    told = " ".join(plan("sequence_len: 8192", "micro_batch_size: 1", "global_batch_size: 8", model=LLAMA).reasons)
    assert "gradient_checkpointing selective: none would be" in told
    assert "cross_entropy chunked: eager would be" in told
    assert "attention flash_attention_2: sdpa would be" in told
    assert "over what may be used" in told


def test_a_row_is_shared_out_only_where_nothing_fits_otherwise() -> None:
    scaled = "rope_scaling: {type: yarn, factor: 32}"
    short, long = (plan(f"sequence_len: {tokens}", scaled, model=LLAMA) for tokens in (32768, 262144))
    assert short.choice.sequence_parallel_size == 1
    assert long.choice.sequence_parallel_size > 1
    assert long.within_headroom
    assert long.choice.global_batch_size == short.choice.global_batch_size == 32
    told = " ".join(long.reasons)
    assert f"sequence_parallel_size {long.choice.sequence_parallel_size}: 1 would be" in told
    assert "tokens of a row on each rank" in told
    pinned = plan("sequence_len: 262144", scaled, "sequence_parallel_size: 1", model=LLAMA)
    assert pinned.choice.sequence_parallel_size == 1
    assert not pinned.within_headroom


def test_steps_by_instruction_and_by_epochs(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"instruction": "a", "output": "b"}\n' * 100)
    text = f"base_model: {TINY}\ndatasets: [{{path: {data}, type: alpaca}}]\nglobal_batch_size: 8\n"
    profile = resolve_profile("a100x8")
    by_epochs = make_plan(loads(text + "num_epochs: 3"), profile, facts(TINY))
    by_steps = make_plan(loads(text + "max_steps: 7"), profile, facts(TINY))
    assert by_epochs.schedule.steps == 39  # ceil(100 / 8) in each of three epochs
    assert by_steps.schedule.steps == 7


# --- nothing fits -------------------------------------------------------------------------------------------------


def test_three_ways_out_each_of_which_fits() -> None:
    loaded = said("gradient_checkpointing: none", "batch_size: 8", model=LLAMA)
    made = make_plan(loaded, resolve_profile("4090x1"), facts(LLAMA))
    assert not made.fits
    ways = ways_out(made, loaded, facts(LLAMA))
    assert len(ways) == 3
    assert len({way.command for way in ways}) == 3
    for way in ways:
        words = way.command.split()
        assert words[:2] == ["dtrain", "plan"]
        sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        again = make_plan(_with(loaded, sets), resolve_profile(words[words.index("--profile") + 1]), facts(LLAMA))
        assert again.within_headroom, way
    with pytest.raises(DoesNotFit, match="more than the") as caught:
        require_fit(made, loaded, facts(LLAMA))
    assert ways[0].command in str(caught.value.fix)


def _with(loaded: Loaded, sets: list[str]) -> Loaded:
    text = f"base_model: {LLAMA}\ndatasets: [{{path: no/data, type: alpaca}}]\nbatch_size: 8\n"
    pinned = "" if any("gradient_checkpointing" in one for one in sets) else "gradient_checkpointing: none\n"
    return loads(text + pinned, sets=sets)


# --- contradictions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "model", "words"),
    [
        (["sequence_len: 4096"], "openai-community/gpt2", "learned positions"),
        (["sequence_parallel_size: 3", "sequence_len: 1200"], TINY, "cannot be divided by 3"),
        (["adapter: qlora", "load_in_4bit: true", "zero_stage: 3"], TINY, "cannot be sharded"),
        (["optimizer: adamw_bnb_8bit", "offload_optimizer: cpu", "zero_stage: 2"], TINY, "cannot be offloaded"),
    ],
)
def test_contradictions_have_a_way_out(lines: list[str], model: str, words: str) -> None:
    with pytest.raises((BadInput, BadInputs)) as caught:
        plan(*lines, model=model)
    assert words in str(caught.value)
    assert "fix" in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["adapter: lora", "lora_target_modules: [q_proj, v_porj]"], "did you mean v_proj"),
        (["attention_pattern: {kind: sliding, window: 64, global_tokens: 4}"], "sliding has no global_tokens"),
        (["attention_pattern: {kind: bigbird}"], "bigbird needs random_blocks"),
        (["attention_pattern: {kind: sliding}", "attention: flash_attention_2"], "has no attention_pattern"),
        (["segment_memory: 64", "attention: flex"], "flex has no segment_memory"),
        (["optimizer: adafactor", "zero_stage: 2"], "scales by whole matrices"),
        (["optimizer: muon", "zero_stage: 2"], "not gradients"),
        (["optimizer: muon", "adapter: lora"], "full training"),
        (["optimizer: muon", "fp16: true", "bf16: false"], "loss scale"),
        (["optimizer: muon", "offload_optimizer: cpu"], "cannot be offloaded"),
        (["master_weights: bf16", "zero_stage: 0"], "from stage 1 on"),
        (["master_weights: bf16", "bf16: false"], "computes in fp32"),
        (["master_weights: bf16", "offload_optimizer: cpu"], "its own CPU optimizer"),
        (["master_weights: bf16", "optimizer: muon"], "keeps fp32 masters"),
        (["adapter: lora", "load_in_8bit: true", "zero_stage: 3"], "cannot be sharded"),
    ],
)
def test_what_launch_could_not_do_is_told_by_the_plan(lines: list[str], words: str) -> None:
    with pytest.raises((BadInput, BadInputs), match=words):
        plan(*lines)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("bigscience/bloom-560m", "attention_pattern: {kind: sliding}"),
        ("mistralai/Mistral-7B-v0.1", "segment_memory: 64"),
        ("Qwen/Qwen3-30B-A3B", "tiled_mlp: true"),
    ],
)
def test_a_model_with_its_own_attention_or_mlp_takes_no_pattern_and_no_tiles(model: str, line: str) -> None:
    with pytest.raises((BadInput, BadInputs), match="cannot"):
        plan(line, model=model)


@pytest.mark.parametrize(
    ("attention", "profile"), [("flash_attention_2", "cpu"), ("flash_attention_3", "a100x8"), ("varlen", "t4x1")]
)
def test_a_kernel_that_no_card_of_the_machine_runs(attention: str, profile: str) -> None:
    with pytest.raises((BadInput, BadInputs), match="needs a CUDA GPU of compute capability"):
        plan(f"attention: {attention}", profile=profile)


def test_what_keeps_no_output_is_never_checkpointed_selectively() -> None:
    for line in ("tiled_mlp: true", "attention_pattern: {kind: sliding, window: 256}"):
        made = plan(line, "sequence_len: 2048", "micro_batch_size: 16", profile="4090x1")
        assert made.choice.gradient_checkpointing != "selective"
    assert plan("attention_pattern: {kind: sliding}").choice.attention == "flex"
    assert plan("attention_pattern: {kind: sliding}", profile="cpu").choice.attention == "sdpa"
    assert plan("optimizer: adafactor").choice.zero_stage == 0


def test_the_stage_follows_from_optimizer_and_masters() -> None:
    assert plan("optimizer: muon").choice.zero_stage == 1
    assert plan("optimizer: muon", profile="cpu").choice.zero_stage == 0
    usual, low = (plan(f"master_weights: {kind}", "zero_stage: 2").memory.terms for kind in ("fp32", "bf16"))
    assert low["optimizer"] == pytest.approx(usual["optimizer"] / 2)
    with pytest.raises((BadInput, BadInputs), match="experts"):
        plan("optimizer: muon", model="Qwen/Qwen3-30B-A3B")


def test_a_window_beyond_rotary_positions_names_the_choices() -> None:
    with pytest.raises((BadInput, BadInputs)) as caught:
        plan("sequence_len: 5000")
    assert "sequence_len: 2048, or rope_scaling: {type: yarn, factor: 3}" in str(caught.value)
    assert plan("sequence_len: 5000", "rope_scaling: {type: yarn, factor: 3}").fits
    other = plan("sequence_len: 5000", "plan_as: {sharding: fsdp2}")
    assert any("beyond the 2048 positions" in line for line in other.warnings)


def test_a_card_without_bf16_refuses_it() -> None:
    with pytest.raises(BadInput, match="has no bf16"):
        plan("bf16: true", profile="t4x1")


# --- command line -------------------------------------------------------------------------------------------------


def test_plan_on_the_command_line() -> None:
    done = CliRunner().invoke(cli, ["plan", "configs/storyteller.yaml", "--profile", "a100x8", "--json"])
    assert done.exit_code == 0, done.output
    check_contract(json.loads(done.stdout))
    words = CliRunner().invoke(cli, ["plan", "configs/storyteller.yaml", "--profile", "a100x8"])
    for part in ("fits", "◀ peak", "ZeRO stage", "tokens/s"):
        assert part in words.stdout


def test_what_does_not_fit_exits_with_3() -> None:
    arguments = ["plan", "configs/storyteller.yaml", "--profile", "4090x1", "--set", f"base_model={LLAMA}", "--json"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 3
    document = json.loads(done.stdout)
    assert document["fits"] is False
    assert len(document["ways_out"]) == 3


def test_every_shipped_config_can_be_planned() -> None:
    for file in Path("configs").glob("*.yaml"):
        loaded = load(file)
        name = loaded.config.base_model
        profile = "cpu" if "tiny" in file.name else "a100x8"
        assert make_plan(loaded, resolve_profile(profile), facts(name)).fits
