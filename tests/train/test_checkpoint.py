"""Save and go on: bit-equal on the same ranks and stage, to 1e-5 on any other; a damaged file is always noticed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dtrain.paths import RunPaths
from tests.soak import crossings
from tests.soak.crossings import Layout
from tests.train.cases import Case
from tests.train.conftest import Forker, Run

pytestmark = [pytest.mark.xdist_group("gloo"), pytest.mark.slow]

LAYOUTS = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (1, "bf16"), (2, "bf16"), (3, "bf16")]
"""ZeRO stage and precision."""


@pytest.fixture(scope="module")
def saved(run_cases: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Runs of six steps on two ranks that saved after the third."""
    home = tmp_path_factory.mktemp("checkpoints")
    cases = [
        Case(
            f"{stage} {precision}",
            stage,
            2,
            2,
            precision=precision,
            save_at=3,
            folder=str(home / f"{stage}-{precision}"),
        )
        for stage, precision in LAYOUTS
    ]
    cases.append(Case("8 bit", 2, 2, 2, optimizer="adamw_bnb_8bit", save_at=3, folder=str(home / "8bit")))
    cases += [
        Case(f"export {stage}", stage, 2, 2, save_at=6, export=True, folder=str(home / f"export-{stage}"))
        for stage in range(4)
    ]
    return run_cases(2, cases)


@pytest.fixture(scope="module")
def resumed(run_cases: Run, saved: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    same = [
        Case(
            f"same {stage} {precision}",
            stage,
            2,
            2,
            precision=precision,
            load=True,
            folder=saved[f"{stage} {precision}"]["folder"],
        )
        for stage, precision in LAYOUTS
    ]
    same.append(Case("same 8 bit", 2, 2, 2, optimizer="adamw_bnb_8bit", load=True, folder=saved["8 bit"]["folder"]))
    bits = {"optimizer": "adamw_bnb_8bit", "load": True, "folder": saved["8 bit"]["folder"]}
    eight = {world: Case(f"8 bit on {world}", 2, 4 // world, 2, **bits) for world in (1, 4)}
    return run_cases(2, same) | run_cases(1, [eight[1]]) | run_cases(4, [eight[4]])


@pytest.mark.parametrize("name", [*(f"{stage} {precision}" for stage, precision in LAYOUTS), "8 bit"])
def test_the_same_ranks_and_stage_go_on_to_the_last_bit(
    saved: dict[str, Any], resumed: dict[str, Any], name: str
) -> None:
    assert resumed[f"same {name}"]["losses"] == saved[name]["losses"][3:]
    assert resumed[f"same {name}"]["grad_norms"] == saved[name]["grad_norms"][3:]


@pytest.fixture(scope="module")
def crossed(forker: Forker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    rows = crossings.cross([*crossings.pairwise(), *BESIDE], tmp_path_factory.mktemp("crossings"), forker)
    return {f"{row['before']} → {row['after']}": row for row in rows}


BESIDE = [
    (Layout(4, 2, sequence_parallel=2), Layout(2, 1)),
    (Layout(2, 0, "lora"), Layout(4, 2, "lora")),
    (Layout(4, 2, "qlora"), Layout(1, 0, "qlora")),
]


@pytest.mark.parametrize(("before", "after"), [*crossings.pairwise(), *BESIDE], ids=lambda one: one.name)
def test_any_other_ranks_and_stage_go_on_to_1e_5(crossed: dict[str, Any], before: Layout, after: Layout) -> None:
    """Every two of ranks and stage before and after meet; `make soak` crosses all with all."""
    row = crossed[f"{before.name} → {after.name}"]
    assert row["losses"] < 1e-5
    assert row["grad_norms"] < 1e-5


@pytest.mark.parametrize("world", [1, 4])
def test_8_bit_states_are_cut_into_new_blocks(saved: dict[str, Any], resumed: dict[str, Any], world: int) -> None:
    """Not to 1e-5: a number is rounded to the codes of its new block. Without its states the run would go off by
    much more: the second moment begins anew, and the first steps are as large as the learning rate."""
    told = resumed[f"8 bit on {world}"]
    assert told["losses"][0] == pytest.approx(saved["8 bit"]["losses"][3], rel=1e-5)  # weights are exact
    assert told["losses"] == pytest.approx(saved["8 bit"]["losses"][3:], rel=1e-4)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_exported_model_reloads(saved: dict[str, Any], stage: int) -> None:
    """`export` compares every tensor after a reload itself; here a stranger loads it too."""
    import transformers

    folder = saved[f"export {stage}"]["folder"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() > 100_000
    assert not (Path(folder) / ".export.part").exists()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_checkpoint_gives_the_same_model_without_any_rank(saved: dict[str, Any], stage: int) -> None:
    """The checkpoint of the last step, put together from two ranks' files, against the exported model."""
    import torch
    from safetensors.torch import load_file

    from dtrain.train.state_files import stored_in, whole_master

    folder = Path(saved[f"export {stage}"]["folder"])
    exported = load_file(folder / "model.safetensors")
    stored = stored_in(RunPaths(folder).checkpoint(6))
    assert exported
    for name, tensor in exported.items():
        assert torch.equal(whole_master(stored, name, tensor.numel()).reshape(tensor.shape), tensor), name


def damaged_copies(source: Path, home: Path) -> list[tuple[str, Path]]:
    copies = []
    for name in sorted(path.name for path in source.iterdir()):
        for kind in ("flipped", "cut", "gone"):
            copy = home / f"{kind}-{name}"
            shutil.copytree(source, copy)
            file = copy / name
            content = bytearray(file.read_bytes())
            if kind == "flipped":
                content[len(content) // 2] ^= 0x10
                file.write_bytes(content)
            elif kind == "cut":
                file.write_bytes(content[: len(content) // 2])
            else:
                file.unlink()
            copies.append((copy.name, copy))
    return copies


def test_a_damaged_file_is_noticed_and_the_checkpoint_before_is_taken(saved: dict[str, Any], tmp_path: Path) -> None:
    from dtrain.train.checkpoint import newest_good

    whole = RunPaths(Path(saved["2 fp32"]["folder"])).checkpoint(3)
    names = []
    for name, copy in damaged_copies(whole, tmp_path / "copies"):
        paths = RunPaths(tmp_path / f"run-{name}")
        shutil.copytree(whole, paths.checkpoint(3))
        shutil.move(copy, paths.checkpoint(9))
        found, told = newest_good(paths)
        names.append(name)
        assert found is not None, name
        assert found.step == 3, name
        assert len(told) == 1, name
        assert told[0].startswith("step-9: "), name
    assert len(names) == 3 * 3  # two ranks' files and the manifest


def test_a_path_in_a_manifest_cannot_leave_the_folder(saved: dict[str, Any], tmp_path: Path) -> None:
    from dtrain.train.checkpoint import sealed, what_is_wrong

    copy = tmp_path / "step-3"
    shutil.copytree(RunPaths(Path(saved["2 fp32"]["folder"])).checkpoint(3), copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"bytes": 1, "sha256": "0"}
    (copy / "manifest.json").write_text(json.dumps(sealed(manifest)))
    assert what_is_wrong(copy) == "../secret lies outside the checkpoint"
