"""Batch arithmetic: what was said is obeyed to the sample, or refused with the nearest figures that work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.config.load import loads
from dtrain.config.origins import Loaded
from dtrain.errors import BadInput
from dtrain.hardware.profiles import resolve_profile
from dtrain.planner.batch import Batches, batches, divisors


def said(*lines: str) -> Loaded:
    return loads("\n".join(["base_model: x", "datasets: [{path: d.jsonl, type: alpaca}]", *lines]))


def allowed(profile: str, *lines: str) -> Batches:
    return batches(said(*lines), resolve_profile(profile))


def test_the_seeds_batch_size_is_per_gpu() -> None:
    found = allowed("a100x8", "micro_batch_size: 4", "batch_size: 8")
    assert found.pairs == ((4, 2),)
    assert found.global_batch(4, 2) == 64


def test_global_batch_is_kept_on_any_machine() -> None:
    for profile in ("a100x1", "a100x2", "a100x8", "h100x8x4"):
        found = allowed(profile, "global_batch_size: 64")
        assert {found.global_batch(*pair) for pair in found.pairs} == {64}


def test_nothing_said_is_the_same_everywhere_and_told() -> None:
    for profile in ("cpu", "a100x8", "h100x8x2"):
        found = allowed(profile)
        assert {found.global_batch(*pair) for pair in found.pairs} == {32}
        assert "no batch size was given" in found.said
    assert allowed("h100x8x8").global_batch(1, 1) == 64


def test_a_micro_batch_alone_is_one_step() -> None:
    assert allowed("a100x2", "micro_batch_size: 3").pairs == ((3, 1),)


@pytest.mark.parametrize(
    ("profile", "lines", "key", "near"),
    [
        ("a100x8", ["global_batch_size: 60"], "global_batch_size", "56 or 64"),
        ("a100x8", ["global_batch_size: 4"], "global_batch_size", "8"),
        ("a100x2", ["global_batch_size: 24", "micro_batch_size: 5"], "micro_batch_size", "1, 2, 3, 4, 6, 12"),
        ("a100x2", ["sequence_parallel_size: 4"], "sequence_parallel_size", "1, 2"),
    ],
)
def test_what_cannot_be_split_names_what_can(profile: str, lines: list[str], key: str, near: str) -> None:
    with pytest.raises(BadInput) as caught:
        allowed(profile, *lines)
    assert caught.value.key == key
    assert near in f"{caught.value.fix} {caught.value.allowed}"
    assert caught.value.line is not None


@given(st.integers(1, 2000))
def test_divisors(number: int) -> None:
    assert divisors(number) == [one for one in range(1, number + 1) if number % one == 0]


@given(st.sampled_from(["a100x1", "a100x2", "a100x8"]), st.integers(1, 64), st.sampled_from(["auto", "1", "2", "4"]))
def test_every_pair_makes_the_batch_that_was_asked_for(profile: str, per_rank: int, micro: str) -> None:
    ranks = resolve_profile(profile).gpus
    try:
        found = allowed(profile, f"global_batch_size: {per_rank * ranks}", f"micro_batch_size: {micro}")
    except BadInput:
        assert micro != "auto"
        assert per_rank % int(micro)
        return
    assert found.pairs
    assert all(found.global_batch(*pair) == per_rank * ranks for pair in found.pairs)
