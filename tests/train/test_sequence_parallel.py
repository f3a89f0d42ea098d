"""Rows over several ranks change nothing: any group size, ZeRO stage, packed or not, with adapters, over a restart.

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
CHECKPOINTING = ("none", "selective", "offload", "full")
"""By stage; at the last one the MLP is tiled as well."""
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": "lora"},
    "qlora": {"adapter": "qlora", "four_bit": True},
    "gemma2": {"family": "gemma2"},
}


def case(name: str, world: int, size: int, stage: int, **told: Any) -> Case:
    """A step of eight rows, or of four packed windows, whatever shares them out."""
    groups, rows = world // size, 4 if told.get("packing") else 8
    micro = rows // max(2, groups)
    return Case(
        name, stage, micro, rows // (micro * groups), steps=STEPS, sequence_parallel=size,
        checkpointing=CHECKPOINTING[stage], tiled_mlp=stage == 3, **told,
    )  # fmt: skip


def cases(world: int, home: Path) -> list[Case]:
    if world == 1:
        references = [Case("rows", 0, 8), Case("packed", 0, 4, packing=True)]
        references += [Case(kind, 0, 8, **told) for kind, told in KINDS.items()]
        return [Case(**{**vars(one), "plain": True, "steps": STEPS}) for one in references]
    every_stage = [
        case(f"{how} sp{size} zero{stage}", world, size, stage, packing=how == "packed")
        for size in {2: (2,), 4: (2, 4)}[world]
        for stage in range(4)
        for how in ("rows", "packed")
        if size == world or (how == "packed") == bool(stage % 2)
    ]
    if world == 2:
        kept = {"save_at": 2, "folder": str(home), "export": True}
        return [
            *every_stage,
            case("lora sp2 zero3", 2, 2, 3, **KINDS["lora"]),
            case("qlora sp2 zero2", 2, 2, 2, **KINDS["qlora"]),
            case("rows sp2 saved", 2, 2, 2, eval_every=2, **kept),
            case("leaks", 2, 2, 2, leaks=True, precision="bf16"),
        ]
    return [
        *every_stage,
        case("gemma2 sp4 zero2", 4, 4, 2, **KINDS["gemma2"]),
        case("rows sp4 resumed", 4, 4, 3, load=True, folder=str(home), eval_every=2),
        case("rows sp1 resumed", 4, 1, 2, load=True, folder=str(home), eval_every=2),
        Case("attention", attention_alone=True),
    ]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sequence-parallel")


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


@pytest.mark.parametrize("name", ["rows sp4 resumed", "rows sp1 resumed"])
def test_goes_on_with_another_group_size(results: dict[tuple[int, str], dict[str, Any]], name: str) -> None:
    saved, resumed = results[2, "rows sp2 saved"], results[4, name]
    assert resumed["losses"] == pytest.approx(saved["losses"][2:], rel=1e-5, abs=0)
    assert resumed["eval_losses"] == pytest.approx(saved["eval_losses"][1:], rel=1e-5, abs=0)


def test_attention_over_four_ranks_is_that_of_one(results: dict[tuple[int, str], dict[str, Any]]) -> None:
    """Outputs and gradients: documents, few key heads, windows, chunks, patterns, memory, values of another width."""
    told = results[4, "attention"]["differences"]
    assert len(told) == 7
    assert max(told.values()) < 1e-6, told


def test_the_references_differ(results: dict[tuple[int, str], dict[str, Any]]) -> None:
    """If nothing moved or packing meant nothing, everything would be equal."""
    rows, packed = results[1, "rows"]["losses"], results[1, "packed"]["losses"]
    assert max(rows) - min(rows) > 1e-2
    assert rows != pytest.approx(packed, rel=1e-5)


def test_documents_that_see_each_other_are_noticed_at_the_start(results: dict[tuple[int, str], dict[str, Any]]) -> None:
    assert "two documents in a row over 2 ranks" in results[2, "leaks"]["refused"]


def test_the_model_is_written_whole(results: dict[tuple[int, str], dict[str, Any]], home: Path) -> None:
    """`export` has compared every tensor with a reload; here, that the folder is a stranger's to load."""
    transformers = pytest.importorskip("transformers")
    assert results[2, "rows sp2 saved"]["losses"]
    assert transformers.AutoModelForCausalLM.from_pretrained(home).num_parameters() > 100_000


def test_positions_scaled_by_length_are_refused_before_weights_are_there() -> None:
    from dtrain.errors import BadInput
    from dtrain.train.sequence_parallel import refuse_positions_by_length

    refuse_positions_by_length({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, 2)
    with pytest.raises(BadInput, match="by the length at hand"):
        refuse_positions_by_length({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, 2)


@pytest.mark.parametrize(("kv_heads", "ranks", "copies"), [(8, 4, 1), (2, 8, 4), (6, 4, 2), (1, 8, 8), (4, 4, 1)])
def test_key_heads_are_repeated_as_often_as_needed(kv_heads: int, ranks: int, copies: int) -> None:
    from dtrain.train.sequence_parallel import copies_of_kv_heads

    assert copies_of_kv_heads(kv_heads, ranks) == copies
