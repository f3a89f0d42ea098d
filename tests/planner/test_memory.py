"""Memory: figures worked out by hand, what physics demands of any layout, and real live bytes of small runs."""

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
from dtrain.hardware.profiles import resolve_profile
from dtrain.models.hub import load_facts
from dtrain.planner.choice import Choice
from dtrain.planner.layout import setup_from
from dtrain.planner.memory import TERMS, Blocks, estimate_memory, moments
from dtrain.planner.optimizers import OPTIMIZERS, optimizer_spec
from dtrain.planner.pools import FRAGMENTATION
from dtrain.planner.setup import AdapterSpec, Dtypes, Setup
from dtrain.planner.states import States
from dtrain.planner.throughput import estimate_time
from dtrain.units import GIB
from tests.planner.layouts import facts, layout

MEASURED = Path(__file__).resolve().parents[1] / "measured" / "cpu_live_bytes.json"
MODELS = (
    "meta-llama/Llama-3.1-8B",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "openai-community/gpt2",
    "Qwen/Qwen3-30B-A3B",
    "openai/gpt-oss-20b",
    "deepseek-ai/DeepSeek-V2-Lite",
    "google/gemma-2-2b",
    "bigscience/bloom-560m",
    "mosaicml/mpt-7b",
)
LORA = AdapterSpec("lora", 16, frozenset({"q_proj", "v_proj"}))
QLORA = Dtypes(frozen="nf4")

setups = st.builds(
    layout,
    model=st.sampled_from(MODELS),
    profile=st.sampled_from(["h100x8", "a100x1", "4090x2", "h100x8x4", "cpu"]),
    sequence_len=st.sampled_from([128, 1000, 4096, 65536]),
    micro_batch_size=st.integers(1, 32),
    accumulation=st.sampled_from([1, 3]),
    sharding=st.sampled_from(["zero0", "zero1", "zero2", "zero3", "fsdp2", "ddp"]),
    reshard_after_forward=st.booleans(),
    dtypes=st.sampled_from([
        Dtypes(), QLORA, Dtypes("fp32", "fp32", None, "fp32", None, "fp32", "fp32"),
        Dtypes("bf16", "bf16", None, "bf16", None),
    ]),
    optimizer=st.sampled_from(list(OPTIMIZERS.values())),
    adapter=st.sampled_from([None, LORA, replace(LORA, dora=True, dropout=True)]),
    checkpointing=st.sampled_from(["none", "full", "selective", "offload"]),
    attention=st.sampled_from(["sdpa", "flash_attention_2", "eager", "varlen"]),
    cross_entropy=st.sampled_from(["eager", "chunked", "compiled", "fused"]),
    sequence_parallel_size=st.sampled_from([1, 1, 2, 8]),
    others_loss=st.booleans(),
    transformers_code=st.booleans(),
    fp32_routing=st.booleans(),
    expandable_segments=st.booleans(),
    sequence_sharded=st.booleans(),
    tensor_parallel_size=st.sampled_from([1, 1, 4]),
    quantised_head=st.booleans(),
    tiled_mlp=st.booleans(),
    compiled=st.booleans(),
    fused_kernels=st.booleans(),
    packed=st.booleans(),
    frozen_keeps_inputs=st.booleans(),
    offload_optimizer=st.sampled_from(["none", "cpu"]),
    offload_params=st.sampled_from(["none", "cpu"]),
    eval_micro_batch_size=st.sampled_from([None, 4]),
    double_quant=st.booleans(),
)  # fmt: skip


@given(setups)
@settings(max_examples=150, deadline=None)
def test_no_term_is_negative_and_terms_add_up(setup: Setup) -> None:
    memory = estimate_memory(setup)
    for phase in memory.phases:
        assert set(phase.terms) == set(TERMS)
        assert all(math.isfinite(size) and size >= 0 for size in phase.terms.values()), phase
        assert phase.total <= memory.peak_allocated + 1e-9
    assert math.isclose(sum(memory.terms.values()), memory.peak_allocated)
    assert 0 <= memory.peak_low <= memory.peak_allocated * 1.2 + 4
    assert memory.peak_allocated <= memory.peak_reserved <= memory.peak_smi == memory.peak <= memory.peak_high
    assert memory.host_memory_gib > 0
    time = estimate_time(setup)
    assert all(math.isfinite(seconds) and seconds >= 0 for seconds in time.parts.values()), time.parts
    assert math.isclose(sum(time.parts.values()), time.step_seconds)


@given(setups, st.sampled_from(["micro_batch_size", "sequence_len"]))
@settings(max_examples=100, deadline=None)
def test_more_tokens_never_need_less(setup: Setup, field: str) -> None:
    more = replace(setup, **{field: getattr(setup, field) * 2})
    assert estimate_memory(more).peak >= estimate_memory(setup).peak - 1e-9


@given(setups)
@settings(max_examples=60, deadline=None)
def test_more_layers_never_need_less(setup: Setup) -> None:
    deeper = replace(setup.facts, layers=tuple((layer, 2 * count) for layer, count in setup.facts.layers))
    assert estimate_memory(replace(setup, facts=deeper)).peak >= estimate_memory(setup).peak - 1e-9


def test_states_of_deepspeed_by_hand() -> None:
    """Llama-3.1-8B, P parameters on 8 ranks: 16-bit weights, fp32 masters, AdamW and fp32 accumulation."""
    whole = facts("meta-llama/Llama-3.1-8B").parameters
    by_stage = {
        sharding: States(layout(sharding=sharding, optimizer=optimizer_spec("adamw_torch")))
        for sharding in ("zero0", "zero1", "zero2", "zero3")
    }
    assert by_stage["zero2"].weights == 2 * whole
    assert by_stage["zero2"].optimizer == pytest.approx(12 * whole / 8)
    assert by_stage["zero2"].gradients == pytest.approx(4 * whole / 8)
    assert by_stage["zero1"].gradients == 4 * whole  # BF16_Optimizer sums all gradients in fp32 on every rank
    assert by_stage["zero0"].step_extra == 4 * whole  # FP16_UnfusedOptimizer casts every gradient before it steps
    assert by_stage["zero3"].weights == pytest.approx(2 * whole / 8, rel=1e-3)
    assert by_stage["zero0"].weights > by_stage["zero3"].weights


def test_quantised_weights_by_hand() -> None:
    """nf4: half a byte and 4/64 of absmax a weight, 0.516 bytes with double quantisation; the rest stays 16 bits."""
    model = facts("meta-llama/Llama-3.1-8B")
    linears = sum(n * one.inputs * one.outputs for layer, n in model.layers for one in layer.linears)
    adapter = layout(adapter=LORA).adapter_parameters
    plain = States(layout(adapter=LORA, dtypes=QLORA)).weights
    double = States(layout(adapter=LORA, dtypes=QLORA, double_quant=True)).weights
    assert plain == pytest.approx(0.5625 * linears + 2 * (model.parameters - linears) + 2 * adapter)
    assert plain - double == pytest.approx((4 / 64 - 1 / 64 - 4 / (64 * 256)) * linears)


def test_offloaded_states_move_to_the_host() -> None:
    here = layout(sharding="zero2")
    away = replace(here, offload_optimizer="cpu")
    moved = estimate_memory(here).terms["optimizer"]
    assert estimate_memory(away).terms["optimizer"] == 0
    assert estimate_memory(away).host_memory_gib - estimate_memory(here).host_memory_gib >= 8 * moved


def test_a_cpu_has_no_context_and_no_fragments() -> None:
    memory = estimate_memory(layout("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "cpu"))
    assert memory.peak_allocated == memory.peak_reserved == memory.peak_smi


def test_eager_logits_are_the_usual_surprise() -> None:
    """128k tokens of vocabulary: 12 bytes a logit, 15.5 elsewhere, where our chunks need next to nothing."""
    logits = 2 * 4096 * 128256
    eager = max(one.logits for one in moments(layout(cross_entropy="eager")))
    elsewhere = max(one.logits for one in moments(layout(cross_entropy="eager", others_loss=True)))
    chunked = max(one.logits for one in moments(layout(cross_entropy="chunked")))
    assert (eager, elsewhere) == pytest.approx((12 * logits, 15.5 * logits))
    assert chunked < eager / 3


def test_a_stream_cut_along_the_sequence_is_kept_in_parts() -> None:
    """Full checkpointing keeps a block's input only: a quarter on each of four ranks, and the rotary tables whole."""
    whole = layout("openai-community/gpt2-xl", sharding="fsdp2", tensor_parallel_size=4, checkpointing="full")
    cut = replace(whole, sequence_sharded=True)
    assert Blocks.of(cut).kept == pytest.approx(Blocks.of(whole).kept / 4)
    assert estimate_memory(cut).peak < estimate_memory(whole).peak


def test_modules_beside_adapters_keep_the_base_type() -> None:
    """peft casts adapters to fp32, and leaves whole modules in 16 bits: weights, gradients and moments."""
    adapted = layout(sharding="ddp", adapter=LORA, dtypes=Dtypes(weights="fp32", master=None, gradient="fp32"))
    more = replace(adapted, adapter=replace(LORA, modules_to_save=frozenset({"lm_head"})))
    matrix = adapted.facts.vocab_size * adapted.facts.hidden_size
    assert States(more).weights - States(adapted).weights == pytest.approx(2 * matrix)
    assert States(more).gradients - States(adapted).gradients == pytest.approx(2 * matrix)
    assert States(more).optimizer - States(adapted).optimizer == pytest.approx(4 * matrix)


def test_reserved_memory_has_fsdps_gradients_even_while_they_are_gone() -> None:
    """At the loss, the reduce-scatter stream's pool of the last step's gradients is there and of no use."""
    setup = layout(profile="b200x8", sharding="fsdp2", cross_entropy="eager", others_loss=True, accumulation=1)
    memory, alike = estimate_memory(setup), estimate_memory(replace(setup, sharding="zero3"))
    idle = States(setup).gradients / GIB
    assert memory.peak_phase == "backward"
    assert memory.terms["gradients"] == 0
    assert memory.peak_reserved == pytest.approx(FRAGMENTATION * (memory.peak_allocated + idle))
    assert alike.peak_reserved == pytest.approx(FRAGMENTATION * alike.peak_allocated)


def test_masks_of_narrow_windows_count_for_sdpa() -> None:
    wide = layout("mistralai/Mistral-7B-v0.1", sequence_len=16384, micro_batch_size=1, attention="flash_attention_2")
    masked = replace(wide, attention="sdpa")
    assert estimate_memory(masked).peak > estimate_memory(wide).peak + 10


@pytest.mark.parametrize("row", json.loads(MEASURED.read_text()), ids=lambda row: row["id"])
def test_live_bytes_of_small_runs(row: dict[str, Any]) -> None:
    """Within 3 % of what a rank of a real two-rank CPU run held (tests/measured/cpu_live_bytes.json)."""
    config = loads(row["config"]).config
    choice = Choice.from_json(row["choice"])
    setup = setup_from(config, load_facts("configs/tiny_llama"), resolve_profile("cpu"), choice)
    planned = estimate_memory(setup).peak_allocated * GIB
    assert planned == pytest.approx(row["live_bytes"], rel=0.03)


def test_the_host_holds_the_copy_that_is_saved_beside_training() -> None:
    """Masters, moments and 16-bit weights, shared out over the nodes; where there is no room, none is taken."""
    setup = layout("meta-llama/Llama-3.1-8B", "a100x8")
    bare = replace(setup, others_loss=True)
    copied = estimate_memory(setup).host_memory_gib - estimate_memory(bare).host_memory_gib
    assert copied == pytest.approx(14 * setup.facts.parameters / GIB)
    crowded = replace(setup, profile=replace(setup.profile, host_memory_gib=60.0))
    assert estimate_memory(crowded).host_memory_gib == estimate_memory(bare).host_memory_gib
