"""A probe measures and leaves no trace: losses and gradient norms are those of a run without it, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest

from tests.train.cases import Case
from tests.train.conftest import Run

pytestmark = [pytest.mark.xdist_group("gloo"), pytest.mark.slow]

CASES = {
    **{f"{stage} {p}": {"zero_stage": stage, "precision": p} for stage in range(4) for p in ("fp32", "bf16")},
    "offload": {"zero_stage": 2, "offload": "cpu"},
    "accumulation": {"zero_stage": 2, "accumulation": 2},
    "8 bit": {"zero_stage": 2, "optimizer": "adamw_bnb_8bit"},
    "lora": {"zero_stage": 2, "adapter": "lora"},
}


@pytest.fixture(scope="module")
def told(run_cases: Run) -> dict[str, dict[str, Any]]:
    return run_cases(2, [
        Case(f"{name} {probe}", micro_batch_size=2, steps=3, probe=probe, **settings)  # type: ignore[arg-type]
        for name, settings in CASES.items() for probe in (True, False)
    ])  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_probed_run_trains_as_any_other(told: dict[str, Any], name: str) -> None:
    probed, plain = told[f"{name} True"], told[f"{name} False"]
    assert probed["losses"] == plain["losses"]
    assert probed["grad_norms"] == plain["grad_norms"]
    assert len(plain["losses"]) == 3
