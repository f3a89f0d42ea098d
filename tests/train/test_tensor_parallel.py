"""Layers cut over two ranks change nothing: ZeRO stage, ranks, packed or not, over a restart, in the model written.

Four steps in fp32 against a plain PyTorch loop over single rows on one process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.train.cases import Case
from tests.train.conftest import Run

pytestmark = [pytest.mark.xdist_group("gloo"), pytest.mark.slow]

STEPS = 4
ROWS, PACKED = 8, 4
"""Slots of a step."""
FAMILIES = ("qwen3", "gemma2")
"""Norms on each head, whose gradients are summed over the group; a head tied to the embedding."""


def case(name: str, world: int, stage: int, **told: Any) -> Case:
    groups, slots = world // 2, PACKED if told.get("packing") else ROWS
    micro = slots // max(2, groups)
    return Case(name, stage, micro, slots // (micro * groups), steps=STEPS, tensor_parallel=2, **told)


def cases(world: int, home: Path) -> list[Case]:
    if world == 1:
        rows = [Case(name, 0, ROWS, family=name) for name in FAMILIES]
        references = [Case("rows", 0, ROWS), Case("packed", 0, PACKED, packing=True), *rows]
        return [Case(**{**vars(one), "plain": True, "steps": STEPS}) for one in references]
    every_stage = [
        case(
            f"{how} zero{stage}", world, stage, packing=how == "packed",
            checkpointing="full" if stage == 1 else "none", offload="cpu" if (how, stage) == ("rows", 2) else "none",
        )
        for stage in range(3)
        for how in ("rows", "packed")
        if world == 2 or (how == "packed") == bool(stage % 2)
    ]  # fmt: skip
    if world == 2:
        families = [case(f"{name} zero{stage}", 2, stage, family=name) for stage, name in enumerate(FAMILIES)]
        saved = [
            case(f"saved {stage}", 2, stage, save_at=2, export=True, folder=str(home / str(stage))) for stage in (0, 2)
        ]
        return [*every_stage, *families, *saved]
    return [
        *every_stage,
        case("resumed 0 to 2", 4, 2, load=True, folder=str(home / "0")),
        case("resumed 2 to 1", 4, 1, load=True, folder=str(home / "2")),
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensor-parallel")


@pytest.fixture(scope="module")
def results(run_cases: Run, home: Path) -> dict[tuple[int, str], dict[str, Any]]:
    return {(world, name): told for world in (1, 2, 4) for name, told in run_cases(world, cases(world, home)).items()}


COMPARED = [(world, one.name) for world in (2, 4) for one in cases(world, Path()) if " zero" in one.name]


@pytest.mark.parametrize(("world", "name"), COMPARED)
def test_equals_one_process(results: dict[tuple[int, str], dict[str, Any]], world: int, name: str) -> None:
    reference, told = results[1, name.split()[0]], results[world, name]
    assert len(told["losses"]) == STEPS
    assert told["losses"] == pytest.approx(reference["losses"], rel=1e-5, abs=0)
    assert told["grad_norms"] == pytest.approx(reference["grad_norms"], rel=1e-5, abs=0)


@pytest.mark.parametrize("name", ["resumed 0 to 2", "resumed 2 to 1"])
def test_goes_on_at_another_stage_and_number_of_ranks(results: dict[tuple[int, str], Any], name: str) -> None:
    assert results[4, name]["losses"] == pytest.approx(results[1, "rows"]["losses"][2:], rel=1e-5, abs=0)


def test_a_checkpoint_gives_the_whole_model(results: dict[tuple[int, str], Any], home: Path) -> None:
    """Put together from the ranks' parts: of the right shapes, and what both stages saved is the same model."""
    import torch

    from dtrain.train.state_files import stored_in, whole_parameter

    assert results[2, "saved 2"]["losses"]
    shapes = {"q_proj": (64, 64), "k_proj": (32, 64), "o_proj": (64, 64), "down_proj": (64, 128)}
    folders = [home / stage / "dtrain" / "checkpoints" / "step-2" for stage in ("0", "2")]
    for name, shape in shapes.items():
        full = f"model.layers.1.{'mlp' if name == 'down_proj' else 'self_attn'}.{name}.weight"
        one, other = (whole_parameter(stored_in(folder), full, torch.Size(shape)) for folder in folders)
        assert one.shape == shape
        assert torch.allclose(one, other, atol=1e-6)
        assert one.std() > 1e-3


def test_the_model_is_written_whole(results: dict[tuple[int, str], Any], home: Path) -> None:
    """`export` has compared every tensor with a reload; here, that both stages wrote the same model."""
    transformers = pytest.importorskip("transformers")
    assert results[2, "saved 2"]["losses"]
    models = [transformers.AutoModelForCausalLM.from_pretrained(home / stage) for stage in ("0", "2")]
    weights = [model.model.layers[0].mlp.down_proj.weight for model in models]
    assert weights[0].shape == (64, 128)
    assert (weights[0] - weights[1]).abs().max() < 1e-5
