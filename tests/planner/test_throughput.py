"""Step time: figures worked out by hand, directions that physics demands, and speed of the estimate itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtrain.planner.collectives import link_over
from dtrain.planner.efficiency import best_tflops, multiprocessors, rates_of
from dtrain.planner.kernels import mean_context
from dtrain.planner.optimizer_time import gradients_to_host, optimizer_seconds
from dtrain.planner.optimizers import optimizer_spec
from dtrain.planner.setup import AdapterSpec, Dtypes, Setup
from dtrain.planner.throughput import estimate_time, weight_bytes
from tests.planner.layouts import layout

LORA = AdapterSpec("lora", 16, frozenset({"q_proj", "k_proj", "v_proj", "o_proj"}))


def seconds(setup: Setup) -> float:
    return estimate_time(setup).step_seconds


def test_parts_add_up_and_rates_follow() -> None:
    setup = layout()
    told = estimate_time(setup)
    assert math.isclose(sum(told.parts.values()), told.step_seconds)
    assert math.isclose(told.tokens_per_second, 2 * 4 * 8 * 4096 / told.step_seconds)
    assert math.isclose(told.tokens_per_second_per_gpu * 8, told.tokens_per_second)


def test_mfu_is_the_contracts() -> None:
    setup = layout()
    told = estimate_time(setup)
    per_token = 6 * 8_030_261_248 + 6 * 32 * 4096 * 4096
    assert told.mfu == pytest.approx(told.tokens_per_second_per_gpu * per_token / 989e12)


def test_mfu_lies_where_published_runs_do() -> None:
    assert 0.35 < (estimate_time(layout()).mfu or 0) < 0.55
    assert 0.45 < (estimate_time(layout(profile="a100x8")).mfu or 0) < 0.65


def test_a_matmul_never_beats_the_best_measured_rate() -> None:
    gpu = layout().profile.gpu
    rates = rates_of(gpu, "bf16")
    for size in (128, 1024, 8192, 65536):
        assert 2 * size**3 / rates.matmul_seconds(size, size, size) < 1e12 * best_tflops(gpu, "bf16")


def test_small_matmuls_are_less_efficient() -> None:
    rates = rates_of(layout().profile.gpu, "bf16")
    shares = [2 * size**3 / rates.matmul_seconds(size, size, size) for size in (256, 1024, 4096, 16384)]
    assert shares == sorted(shares)


def test_a_thin_matmul_is_bound_by_memory() -> None:
    rates = rates_of(layout().profile.gpu, "bf16")
    assert rates.matmul_seconds(1, 8192, 8192) >= 2 * 8192 * 8192 / rates.memory


def test_every_catalogue_card_has_rates() -> None:
    for name in ("t4x1", "v100x8", "l4x1", "a10gx1", "4090x1", "5090x1", "mi300x8", "b200x8", "h100-pciex1"):
        assert seconds(layout("TinyLlama/TinyLlama-1.1B-Chat-v1.0", name, sharding="zero0")) > 0


def test_multiprocessors_are_found_by_any_name_of_the_card() -> None:
    assert multiprocessors(layout(profile="a100-40gbx8").profile.gpu) == 108
    assert multiprocessors(layout(profile="v100-32gbx8").profile.gpu) == 80
    assert multiprocessors(layout(profile="4090x1").profile.gpu) == 128


@pytest.mark.parametrize(
    ("slower", "faster"),
    [
        ({"checkpointing": "full"}, {"checkpointing": "none"}),
        ({"checkpointing": "full"}, {"checkpointing": "selective"}),
        ({"checkpointing": "selective"}, {"checkpointing": "none"}),
        ({"attention": "eager"}, {"attention": "sdpa"}),
        ({"attention": "flash_attention_2"}, {"attention": "flash_attention_3"}),
        ({"cross_entropy": "eager"}, {"cross_entropy": "fused"}),
        ({"compiled": False}, {"compiled": True}),
        ({"offload_optimizer": "cpu"}, {"offload_optimizer": "none"}),
        ({"offload_optimizer": "nvme"}, {"offload_optimizer": "cpu"}),
        ({"sharding": "zero3", "offload_params": "cpu"}, {"sharding": "zero3"}),
        ({}, {"fp8_linears": True}),
        ({"dtypes": Dtypes(compute="fp32", weights="fp32", master=None)}, {"dtypes": Dtypes()}),
        ({}, {"adapter": LORA}),
        ({"adapter": LORA, "dtypes": Dtypes(frozen="nf4")}, {"adapter": LORA}),
        ({"trained_share": 1.0}, {"trained_share": 0.3}),
        ({"profile_name": "a100x8"}, {"profile_name": "h100x8"}),
        ({"profile_name": "a100-40gbx8"}, {"profile_name": "a100x8"}),
    ],
)
def test_direction(slower: dict[str, Any], faster: dict[str, Any]) -> None:
    def of(changes: dict[str, Any]) -> float:
        told = dict(changes)
        return seconds(layout(profile=str(told.pop("profile_name", "h100x8")), **told))

    assert of(slower) > of(faster)


def test_fully_recomputing_costs_a_quarter_to_a_third() -> None:
    ratio = seconds(layout(checkpointing="full")) / seconds(layout())
    assert 1.15 < ratio < 1.34


def test_only_quantised_weights_travel_quantised_twice() -> None:
    """Double quantisation says nothing about weights that are not quantised at all."""
    plain, quantised = Dtypes(), Dtypes(frozen="nf4")
    whole = 2 * layout().facts.parameters
    for dtypes, twice, bytes_per_weight in ((plain, False, 2), (plain, True, 2), (quantised, True, 0.5 + 1 / 64)):
        lora = layout(adapter=LORA, dtypes=dtypes, double_quant=twice)
        frozen = weight_bytes(lora) - 2 * lora.trained_parameters
        assert frozen == pytest.approx(whole * bytes_per_weight / 2, rel=0.01)


def test_sharded_weights_are_copied_out_of_their_flat_buffer_every_pass() -> None:
    """Twice at stage 3, forward and backward, and the gradients packed: bytes over the card's bandwidth."""
    sharded, whole = layout(sharding="zero3"), layout(sharding="zero2")
    rate = rates_of(sharded.profile.gpu, "bf16").memory
    more = estimate_time(sharded).parts["elementwise"] - estimate_time(whole).parts["elementwise"]
    parameters = sharded.facts.parameters
    assert more == pytest.approx(4 * parameters * (2 * 2 * 2 + 2 + 2) / rate, rel=1e-3)  # four micro-batches


def test_a_vocabulary_that_is_no_multiple_of_eight_costs_the_head_its_fast_kernels() -> None:
    def head(vocabulary: int, compiled: bool = False) -> float:
        facts = layout().facts
        odd = replace(facts, vocab_size=vocabulary)
        return estimate_time(replace(layout(compiled=compiled), facts=odd)).parts["head"]

    assert head(50_257) > 1.5 * head(50_264)
    assert head(50_257, compiled=True) == pytest.approx(head(50_264, compiled=True), rel=1e-3)


def test_dora_makes_every_updated_matrix_to_take_its_norm() -> None:
    plain, dora = (estimate_time(layout(adapter=one)).parts["compute"] for one in (LORA, replace(LORA, dora=True)))
    assert dora > plain


def test_more_ranks_wait_for_the_latest_host() -> None:
    few, many = (estimate_time(layout(profile=name)).parts["other"] for name in ("h100x2", "h100x8"))
    assert many - few == pytest.approx(2 * 5e-3)


def test_accumulation_spreads_the_optimizer() -> None:
    one, four = seconds(layout(accumulation=1)), seconds(layout(accumulation=4))
    assert 3 * one < four < 4 * one


def test_one_gpu_has_no_collectives() -> None:
    assert estimate_time(layout(profile="h100x1", sharding="zero0")).parts["collectives"] == 0


def test_a_slow_network_bends_the_curve() -> None:
    fast = layout(profile="h100x8x4", sharding="zero3", micro_batch_size=1, accumulation=1)
    slow = replace(fast, profile=replace(fast.profile, network_gbit_per_s=25.0))
    assert seconds(slow) > 3 * seconds(fast)


def test_a_ring_over_nodes_is_as_fast_as_its_slowest_link() -> None:
    profile = replace(layout(profile="h100x8x4").profile, network_gbit_per_s=400.0)
    inside, across = link_over(profile, 8), link_over(profile, 32)
    assert inside.bandwidth == pytest.approx(0.78 * 450e9)
    assert across.bandwidth == pytest.approx(0.80 * 50e9)
    assert across.gather(1e9) > across.gather(5e8) > 0
    assert link_over(profile, 1).reduce(1e9) == 0


def test_gradients_travel_once_a_step_at_stage_1_and_every_pass_at_stage_2() -> None:
    slow_network = replace(layout(profile="h100x8x4").profile, network_gbit_per_s=10.0)
    first, second = (layout(profile="h100x8x4", sharding=one, accumulation=16) for one in ("zero1", "zero2"))
    assert seconds(replace(second, profile=slow_network)) > 1.5 * seconds(replace(first, profile=slow_network))


def test_sharding_shares_the_optimizer() -> None:
    alone, shared = optimizer_seconds(layout(sharding="zero0")), optimizer_seconds(layout(sharding="zero1"))
    assert alone == pytest.approx(8 * shared)


def test_a_fused_optimizer_moves_the_bytes_once() -> None:
    fused = layout(sharding="zero0", optimizer=optimizer_spec("adamw_torch_fused"), gradient_clipping=False)
    # bf16 weights, fp32 masters, fp32 summed gradients: 2·4 + 2·8 + 4 in the step, 4 + 2 to copy the weights back
    bytes_moved = 8_030_261_248 * (28 + 6)
    assert optimizer_seconds(fused) == pytest.approx(bytes_moved / (0.85 * 3350e9), rel=1e-6)


def test_muon_pays_for_its_matmuls() -> None:
    adam, muon = (layout(optimizer=optimizer_spec(name)) for name in ("adamw_torch", "muon"))
    assert optimizer_seconds(muon) > 2 * optimizer_seconds(adam)


def test_offloaded_gradients_travel_with_every_micro_batch() -> None:
    once = layout(offload_optimizer="cpu", sharding="zero3", accumulation=1)
    often = replace(once, accumulation=8)
    assert gradients_to_host(once) == 0  # only the step's own transfer
    shard = 4 * 8_030_261_248 / 8  # fp32 sums
    assert gradients_to_host(often) == pytest.approx(
        shard * (2 - 1 / 8) / 25e9
    )  # eight cards share the host's 200 GB/s


def test_frozen_weights_travel_as_they_are_held() -> None:
    assert weight_bytes(layout()) == 2 * 8_030_261_248
    quantised = layout(adapter=LORA, dtypes=Dtypes(frozen="nf4"), double_quant=True)
    assert weight_bytes(quantised) < 0.3 * weight_bytes(layout())


def test_a_window_of_the_layer_cuts_attention() -> None:
    assert mean_context(4096, None) == 2048
    assert mean_context(4096, 1024) == 1024 - 128
    assert mean_context(512, 1024) == 256


def test_experts_cost_what_a_token_uses() -> None:
    dense, sparse = layout("mistralai/Mistral-7B-v0.1"), layout("mistralai/Mixtral-8x7B-v0.1")
    ratio = estimate_time(sparse).parts["compute"] / estimate_time(dense).parts["compute"]
    assert 1.5 < ratio < 3.0  # 12.9B of 46.7B parameters are active


def test_sequence_parallel_splits_the_window_and_pays_for_the_exchange() -> None:
    whole = layout(sequence_len=65536, micro_batch_size=1, accumulation=1, sharding="zero3", checkpointing="full")
    split = replace(whole, sequence_parallel_size=8)
    assert split.step_tokens * 8 == whole.step_tokens
    one, parted = estimate_time(whole), estimate_time(split)
    assert parted.parts["attention"] == pytest.approx(one.parts["attention"] / 8, rel=0.01)
    assert parted.parts["collectives"] > 0


def test_launches_bound_a_tiny_model_on_a_large_card() -> None:
    tiny = layout("EleutherAI/pythia-70m", "h100x1", sequence_len=128, micro_batch_size=1, sharding="zero0")
    assert estimate_time(tiny).parts["launches"] > 0
    assert estimate_time(layout(sharding="zero0")).parts["launches"] == 0


def test_stage_3_hooks_are_felt_where_kernels_are_short() -> None:
    tiny = layout("EleutherAI/pythia-70m", "h100x8", sequence_len=512, micro_batch_size=1)
    assert seconds(replace(tiny, sharding="zero3")) > 2 * seconds(tiny)


def test_a_cpu_gets_a_sane_estimate() -> None:
    tiny = layout("EleutherAI/pythia-70m", "cpu", sequence_len=256, micro_batch_size=1, dtypes=Dtypes(compute="fp32"))
    assert 0.05 < seconds(tiny) < 60


def test_mpt_runs_its_own_attention_kernel() -> None:
    mpt = layout("mosaicml/mpt-7b", sequence_len=2048)
    assert estimate_time(mpt).parts["attention"] == estimate_time(replace(mpt, attention="triton")).parts["attention"]


@settings(max_examples=150, deadline=None)
@given(
    sharding=st.sampled_from(["zero0", "zero1", "zero2", "zero3", "fsdp2", "ddp"]),
    profile=st.sampled_from(["4090x1", "a100x8", "h100x8x16", "t4x4", "mi300x8", "cpux2"]),
    checkpointing=st.sampled_from(["none", "full", "selective", "offload"]),
    attention=st.sampled_from(["eager", "sdpa", "flex", "varlen", "flash_attention_2", "flash_attention_3"]),
    cross_entropy=st.sampled_from(["eager", "chunked", "compiled", "fused"]),
    window=st.integers(1, 131072),
    micro=st.integers(1, 64),
    accumulation=st.integers(1, 64),
    adapter=st.sampled_from([None, LORA]),
    offload=st.sampled_from(["none", "cpu", "nvme"]),
)
def test_never_negative_and_longer_windows_take_longer(
    sharding: str, profile: str, checkpointing: str, attention: str, cross_entropy: str, window: int, micro: int,
    accumulation: int, adapter: AdapterSpec | None, offload: str,
) -> None:  # fmt: skip
    setup = layout(
        "Qwen/Qwen2.5-0.5B", profile, sharding=sharding, checkpointing=checkpointing, attention=attention,
        cross_entropy=cross_entropy, sequence_len=window, micro_batch_size=micro, accumulation=accumulation,
        adapter=adapter, offload_optimizer=offload,
    )  # fmt: skip
    told = estimate_time(setup)
    assert all(value >= 0 and math.isfinite(value) for value in told.parts.values())
    assert seconds(replace(setup, sequence_len=window + 1024)) > told.step_seconds
    assert seconds(replace(setup, micro_batch_size=micro + 1)) >= told.step_seconds
