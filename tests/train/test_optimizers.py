"""Optimizers by Axolotl's names: the same result over ranks and ZeRO stages, resumed to the last bit, and of the size
the planner counts."""

from __future__ import annotations

from dataclasses import replace
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


def muon(stage: int, world: int, home: Path, precision: str = "bf16", **changes: Any) -> Case:
    """Where ZeRO cuts matrices (stage 1), DeepSpeed has it in bf16 only."""
    one = case("muon", stage, world, home, precision=precision, **changes)
    return replace(one, name=f"{one.name} {precision}")


def low(stage: int, world: int, home: Path, masters: str = "bf16", **changes: Any) -> Case:
    """In bf16, with masters of a type."""
    told = {"precision": "bf16", "master_weights": masters, "folder": str(home / f"{masters}-{stage}-{world}")}
    return replace(case("adamw_torch", stage, world, home, **(told | changes)), name=f"{masters} masters zero{stage}")


def cases(world: int, home: Path) -> list[Case]:
    stages = {1: (0,), 2: (2, 3)}[world]
    shared = [case(name, stage, world, home) for name in SHARED for stage in stages]
    orthogonal = [muon(0, world, home, "fp32"), *(muon(stage, world, home) for stage in (0, 1))]
    masters = [low(stage, world, home) for stage in (1, 2, 3)] + [low(2, world, home, "fp32")] if world == 2 else []
    return [*shared, case("adafactor", 0, world, home), *orthogonal, *masters]


@pytest.fixture(scope="module")
def results(run_cases: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], dict[str, Any]]:
    home = tmp_path_factory.mktemp("optimizers")
    return {(world, name): told for world in (1, 2) for name, told in run_cases(world, cases(world, home)).items()}


@pytest.mark.parametrize(("name", "stage"), [*((name, stage) for name in SHARED for stage in (2, 3)), ("adafactor", 0)])
def test_equals_one_process(results: dict[tuple[int, str], Any], name: str, stage: int) -> None:
    told, alone = results[2, f"{name} zero{stage}"], results[1, f"{name} zero0"]
    assert told["losses"] == pytest.approx(alone["losses"], rel=SHARED.get(name, 1e-5))
    assert abs(alone["losses"][0] - alone["losses"][-1]) > 1e-3


@pytest.mark.parametrize("name", ["zero0 fp32", "zero0 bf16", "zero1 bf16"])
def test_muon_equals_one_process(results: dict[tuple[int, str], Any], name: str) -> None:
    """Newton-Schulz runs in fp16, which the last bit of a gradient can move; half a step elsewhere would be 1e-2."""
    told, alone = results[2, f"muon {name}"], results[1, f"muon zero0 {name.split()[1]}"]
    assert told["losses"] == pytest.approx(alone["losses"], rel=3e-4)
    assert told["grad_norms"] == pytest.approx(alone["grad_norms"], rel=5e-3)
    assert abs(alone["losses"][3] - alone["losses"][4]) > 1e-2


def test_bf16_masters_are_the_same_at_every_stage_and_near_fp32_ones(results: dict[tuple[int, str], Any]) -> None:
    first = results[2, "bf16 masters zero1"]
    for stage in (2, 3):
        assert results[2, f"bf16 masters zero{stage}"]["losses"] == first["losses"]
    usual = results[2, "fp32 masters zero2"]["losses"]
    assert first["losses"] == pytest.approx(usual, rel=1e-3)
    assert first["losses"] != usual


def test_muon_and_bf16_masters_go_on_anywhere(results: dict[tuple[int, str], Any], run_cases: Run) -> None:
    """On the same ranks to the last bit; at another stage on another number of ranks as nearly as they agree at all."""
    home = Path(results[2, "adafactor zero0"]["folder"]).parent
    told: dict[str, Any] = {"load": True, "save_at": None}
    same = run_cases(2, [muon(1, 2, home, **told), low(3, 2, home, **told)])
    for name in ("muon zero1 bf16", "bf16 masters zero3"):
        assert same[name]["losses"] == results[2, name]["losses"][3:]
    other = run_cases(1, [
        muon(0, 1, home, **told, folder=results[2, "muon zero1 bf16"]["folder"]),
        low(1, 1, home, **told, folder=results[2, "bf16 masters zero3"]["folder"]),
    ])  # fmt: skip
    assert other["muon zero0 bf16"]["losses"] == pytest.approx(results[2, "muon zero1 bf16"]["losses"][3:], rel=3e-4)
    low_losses = results[2, "bf16 masters zero3"]["losses"][3:]
    assert other["bf16 masters zero1"]["losses"] == pytest.approx(low_losses, rel=1e-3)


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
