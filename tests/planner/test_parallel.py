"""What cannot be split over ranks is refused at plan time, by name and with a way out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dtrain.errors import BadInput, BadInputs
from dtrain.models.read import FAMILIES
from dtrain.planner.parallel import OWN_ATTENTION, rope_problem
from dtrain.planner.states import States
from dtrain.planner.throughput import tensor_parallel_seconds
from tests.planner.layouts import layout
from tests.planner.test_bad_input import TINY, plan

LLAMA = "meta-llama/Llama-3.1-8B"
TP = ("sequence_len: 4096", "micro_batch_size: 1")


def refused(*lines: str, model: str = TINY) -> dict[str | None, str]:
    with pytest.raises((BadInput, BadInputs)) as caught:
        plan(*lines, model=model)
    errors = caught.value.errors if isinstance(caught.value, BadInputs) else [caught.value]
    assert all(error.fix for error in errors)
    return {error.key: str(error) for error in errors}


@pytest.mark.parametrize(
    ("lines", "key", "words"),
    [
        (("sequence_parallel_size: 3",), "sequence_parallel_size", "32 attention heads cannot be divided by 3"),
        (("sequence_parallel_size: 2", "attention: eager"), "attention", "documents would not be kept apart"),
        (("sequence_parallel_size: 8", "sequence_len: 4"), "sequence_len", "fewer than one"),
        (("sequence_parallel_size: 16",), "sequence_parallel_size", "8 GPUs cannot be split into groups of 16"),
    ],
)
def test_sequence_parallel_that_cannot_be(lines: tuple[str, ...], key: str, words: str) -> None:
    assert words in refused(*lines)[key]


@pytest.mark.parametrize(
    ("lines", "key", "words"),
    [
        ((), "tensor_parallel_size", "4 key and value heads cannot be divided by 8"),
        (("zero_stage: 3",), "zero_stage", "shards what tensor parallel has cut"),
        (("zero_stage: 0", "bf16: true"), "zero_stage", "the gradient norm would be wrong"),
        (("sequence_parallel_size: 2",), "tensor_parallel_size", "one of the two at a time"),
        (("adapter: lora",), "adapter", "adapters lie on whole layers"),
        (("optimizer: muon",), "optimizer", "whole matrices"),
        (("tiled_mlp: true",), "tiled_mlp", "for each tile"),
    ],
)
def test_tensor_parallel_that_cannot_be(lines: tuple[str, ...], key: str, words: str) -> None:
    size = 8 if key == "tensor_parallel_size" and not lines else 2
    assert words in refused(f"tensor_parallel_size: {size}", *lines)[key]


def test_tensor_parallel_of_another_family() -> None:
    words = refused("tensor_parallel_size: 2", "sequence_len: 512", model="microsoft/phi-2")["tensor_parallel_size"]
    assert "phi is not among the families" in words


def test_tensor_parallel_takes_a_stage_below_three() -> None:
    made = plan("tensor_parallel_size: 4", "sequence_len: 2048", model="meta-llama/Llama-3.1-70B", profile="h100x8")
    assert made.choice.zero_stage < 3
    assert made.choice.global_batch_size % 2 == 0


def test_tensor_parallel_counts_embedding_and_head_whole() -> None:
    """Llama-3.1-8B: 1.05 billion of its 8.03 billion parameters are the embedding and the head."""
    alone = layout(profile="h100x8", sharding="zero1")
    cut = replace(alone, tensor_parallel_size=8, autotp=True)
    elsewhere = replace(cut, autotp=False)
    assert States(elsewhere).weights == pytest.approx(States(alone).weights / 8)
    assert States(cut).weights == pytest.approx(2 * (1.0506e9 + 6.9794e9 / 8), rel=1e-3)
    assert tensor_parallel_seconds(cut) > 1.5 * tensor_parallel_seconds(elsewhere) > 0
    assert any(
        "24% of the parameters on each rank" in line
        for line in plan(*TP, "tensor_parallel_size: 8", model=LLAMA).reasons
    )


def test_another_framework_may_do_what_we_do_not() -> None:
    lines = ("tensor_parallel_size: 2", "plan_as: {sharding: fsdp2}", "sequence_len: 2048")
    assert plan(*lines).choice.zero_stage == 3


def test_a_window_need_not_divide_and_kv_heads_may_be_fewer_than_ranks() -> None:
    made = plan("sequence_parallel_size: 8", "sequence_len: 2001", "micro_batch_size: 1")
    assert made.facts.kv_heads == 4
    assert made.choice.sequence_parallel_size == 8
    assert made.choice.global_batch_size == 1


def test_positions_that_depend_on_the_length_at_hand() -> None:
    assert rope_problem({"rope_scaling": {"type": "dynamic", "factor": 2.0}})
    assert rope_problem({"rope_parameters": {"full_attention": {"rope_type": "longrope"}}})
    assert rope_problem({"rope_scaling": {"rope_type": "llama3"}, "rope_parameters": {"rope_theta": 1e4}}) is None
    assert rope_problem({"rope_scaling": None}) is None


def test_the_families_with_attention_of_their_own_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    names = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    fixed = {one for one in FAMILIES if not getattr(transformers, names[one])._supports_attention_backend}
    assert fixed == OWN_ATTENTION
