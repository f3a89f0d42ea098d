"""What must not change the result does not: ZeRO stage, ranks, accumulation, packing, layout, checkpointing.

Losses and gradient norms of six steps in fp32 with torch's AdamW, clipped, against a plain PyTorch loop over rows.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.train.cases import Case
from tests.train.conftest import Run

pytestmark = [pytest.mark.xdist_group("gloo"), pytest.mark.slow]

SPLITS = {1: ((8, 1), (4, 2), (1, 8)), 2: ((4, 1), (2, 2), (1, 4)), 4: ((2, 1), (1, 2))}
"""World → (micro-batch, accumulation), each with a global batch of 8."""


REFERENCES = {"one row too few": "one row too few"}
"""Nine rows in steps of eight: the last step of an epoch has one row, and three of four ranks have none."""


def cases(world: int) -> list[Case]:
    stages = [
        Case(f"zero{stage} {micro}x{steps}", zero_stage=stage, micro_batch_size=micro, accumulation=steps)
        for stage in (0, 1, 2, 3)
        for micro, steps in (SPLITS[world] if stage in (0, 2) else SPLITS[world][:1])
    ]
    stages += [Case("evaluated", zero_stage=2, micro_batch_size=SPLITS[world][0][0], eval_every=2)]
    packed = [
        Case(f"packed zero{stage}", zero_stage=stage, micro_batch_size=4 // world, packing=True)
        for stage in ((0, 3) if world > 1 else (0,))
    ]
    micro = SPLITS[world][0][0]
    others = [
        Case("checkpointed zero2", zero_stage=2, micro_batch_size=micro, checkpointing="full"),
        Case("checkpointed zero3", zero_stage=3, micro_batch_size=micro, checkpointing="full"),
    ]
    if world == 2:
        others += [
            Case(f"{kind} zero{stage}", zero_stage=stage, micro_batch_size=micro, checkpointing=kind)
            for kind, stage in (("selective", 0), ("selective", 2), ("selective", 3), ("offload", 1), ("offload", 3))
        ]
        others += [
            Case(f"tiled zero{stage} {kind}", stage, micro, checkpointing=kind, tiled_mlp=True)
            for stage, kind in ((0, "none"), (2, "offload"), (3, "none"), (3, "full"))
        ]
    if world == 4:
        others.append(Case("one row too few", zero_stage=2, micro_batch_size=2, rows=9, steps=6))
    if world == 1:
        others.append(Case("one row too few", micro_batch_size=8, rows=9, steps=6, plain=True))
        others += [
            Case("plain", micro_batch_size=8, plain=True),
            Case("plain packed", micro_batch_size=4, packing=True, plain=True),
            Case("padded", micro_batch_size=4, accumulation=2, layout="padded"),
            Case("eager loss", micro_batch_size=8, cross_entropy="eager"),
            Case("eager attention", micro_batch_size=8, attention="eager"),
            Case("packed eager attention", micro_batch_size=4, packing=True, attention="eager"),
            Case("offloaded", zero_stage=2, micro_batch_size=8, offload="cpu"),
        ]
    return stages + packed + others


@pytest.fixture(scope="module")
def results(run_cases: Run) -> dict[tuple[int, str], dict[str, Any]]:
    return {(world, name): told for world in (1, 2, 4) for name, told in run_cases(world, cases(world)).items()}


@pytest.mark.parametrize(("world", "name"), [(world, case.name) for world in (1, 2, 4) for case in cases(world)])
def test_equals_the_plain_loop(results: dict[tuple[int, str], dict[str, Any]], world: int, name: str) -> None:
    reference = results[1, REFERENCES.get(name, "plain packed" if "packed" in name else "plain")]
    told = results[world, name]
    assert len(told["losses"]) == 6
    assert told["losses"] == pytest.approx(reference["losses"], rel=1e-5, abs=0)
    assert told["grad_norms"] == pytest.approx(reference["grad_norms"], rel=1e-5, abs=0)


def test_held_out_loss_is_the_same_on_any_number_of_ranks(results: dict[tuple[int, str], dict[str, Any]]) -> None:
    alone = results[1, "evaluated"]["eval_losses"]
    assert len(alone) == 3
    assert alone[-1] < alone[0]
    for world in (2, 4):
        assert results[world, "evaluated"]["eval_losses"] == pytest.approx(alone, rel=1e-5)


def test_the_reference_learns_something(results: dict[tuple[int, str], dict[str, Any]]) -> None:
    """If nothing moved, everything would be equal."""
    losses = results[1, "plain"]["losses"]
    assert max(losses) - min(losses) > 1e-2
    assert results[1, "plain"]["losses"] != pytest.approx(results[1, "plain packed"]["losses"], rel=1e-5)
