"""A step that is left out leaves nothing behind: not in weights, moments, gradients or the count of steps."""

from __future__ import annotations

from typing import Any

import pytest

from tests.train.cases import Case
from tests.train.conftest import Run

pytestmark = [pytest.mark.xdist_group("gloo"), pytest.mark.slow]

LAYOUTS = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
OFFLOADED = [(2, "cpu"), (3, "cpu")]
LEFT_OUT = 2


@pytest.fixture(scope="module")
def told(run_cases: Run) -> dict[str, dict[str, Any]]:
    cases = []
    for how in ({"skip": LEFT_OUT}, {"passed": LEFT_OUT}):
        name = next(iter(how))
        cases += [Case(f"{name} {stage} {p}", stage, 2, 2, precision=p, **how) for stage, p in LAYOUTS]  # type: ignore[arg-type]
        cases += [Case(f"{name} {stage} {o}", stage, 2, 2, offload=o, **how) for stage, o in OFFLOADED]  # type: ignore[arg-type]
    cases.append(Case("last", 2, 2, 2, passed=5, eval_every=100))
    return run_cases(2, cases)


@pytest.mark.parametrize(("stage", "kind"), LAYOUTS + OFFLOADED)
def test_a_skipped_step_is_as_if_it_had_not_been(told: dict[str, Any], stage: int, kind: str) -> None:
    skipped, passed = told[f"skip {stage} {kind}"], told[f"passed {stage} {kind}"]
    assert len(skipped["losses"]) == 5
    assert skipped["losses"] == passed["losses"]
    assert skipped["grad_norms"] == passed["grad_norms"]


def test_a_last_step_that_is_passed_still_ends_with_an_evaluation(told: dict[str, Any]) -> None:
    assert len(told["last"]["losses"]) == 5
    assert len(told["last"]["eval_losses"]) == 1
