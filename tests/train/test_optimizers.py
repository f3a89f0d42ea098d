"""Optimizers by Axolotl's names: the same result over ranks and ZeRO stages, resumed to the last bit, and of the size
the planner counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dtrain.planner.optimizers import optimizer_spec
from tests.train.cases import Case
from tests.train.conftest import Run

pytestmark = [pytest.mark.xdist_group("gloo"), pytest.mark.slow]

SHARED = {"paged_adamw_32bit": 1e-4, "lion_32bit": 1e-3, "paged_adamw_8bit": 2e-2, "lion_8bit": 2e-2}
"""Relative tolerance of losses over ranks and stages. Lion steps by signs, which the last bit of a gradient near zero
decides; blocks of 8-bit states begin elsewhere in each partition, and small matrices alone keep 32 bits."""
RATE = {"lion_32bit": 1e-3, "lion_8bit": 1e-3, "paged_lion_8bit": 1e-3, "paged_lion_32bit": 1e-3}


def case(name: str, stage: int, world: int, home: Path, **changes: Any) -> Case:
    told: dict[str, Any] = {
        "zero_stage": stage, "micro_batch_size": 8 // world, "optimizer": name,
        "learning_rate": RATE.get(name, 1e-2), "folder": str(home / f"{name}-{stage}-{world}"), "save_at": 3,
    }  # fmt: skip
    return Case(f"{name} zero{stage}", **(told | changes))


def cases(world: int, home: Path) -> list[Case]:
    stages = {1: (0,), 2: (2, 3)}[world]
    shared = [case(name, stage, world, home) for name in SHARED for stage in stages]
    return [*shared, case("adafactor", 0, world, home)]


@pytest.fixture(scope="module")
def results(run_cases: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], dict[str, Any]]:
    home = tmp_path_factory.mktemp("optimizers")
    return {(world, name): told for world in (1, 2) for name, told in run_cases(world, cases(world, home)).items()}


@pytest.mark.parametrize(("name", "stage"), [*((name, stage) for name in SHARED for stage in (2, 3)), ("adafactor", 0)])
def test_equals_one_process(results: dict[tuple[int, str], Any], name: str, stage: int) -> None:
    told, alone = results[2, f"{name} zero{stage}"], results[1, f"{name} zero0"]
    assert told["losses"] == pytest.approx(alone["losses"], rel=SHARED.get(name, 1e-5))
    assert abs(alone["losses"][0] - alone["losses"][-1]) > 1e-3


def test_goes_on_to_the_last_bit(results: dict[tuple[int, str], Any], run_cases: Run) -> None:
    again = [(name, 3) for name in SHARED] + [("adafactor", 0)]
    home = Path(results[2, "adafactor zero0"]["folder"]).parent
    after = run_cases(2, [case(name, stage, 2, home, load=True, save_at=None) for name, stage in again])
    for name, stage in again:
        before = results[2, f"{name} zero{stage}"]
        assert after[f"{name} zero{stage}"]["losses"] == before["losses"][3:], name


def test_states_weigh_what_the_planner_counts(results: dict[tuple[int, str], Any]) -> None:
    """Between two optimizers of one layout only their states differ: bytes in the files of both ranks, at stage 2."""
    parameters = 2 * 64 * 256 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
    sizes = {
        name: sum(one.stat().st_size for one in Path(results[2, f"{name} zero2"]["folder"]).rglob("rank-*.safetensors"))
        for name in SHARED
    }
    for name in SHARED:
        saved = optimizer_spec("paged_adamw_32bit").state_bytes - optimizer_spec(name).state_bytes
        assert sizes["paged_adamw_32bit"] - sizes[name] == pytest.approx(saved * parameters, rel=0.05)
