"""LoRA, DoRA and QLoRA: the same result over stages, ranks and accumulation; written, read back, resumed, merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.train.cases import Case
from tests.train.conftest import Run

pytestmark = [pytest.mark.xdist_group("gloo"), pytest.mark.slow]

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": "lora"},
    "dora": {"adapter": "lora", "dora": True},
    "qlora": {"adapter": "qlora", "four_bit": True},
    "int8": {"adapter": "lora", "eight_bit": True},
}
CHECKPOINTING = {0: "none", 2: "selective", 3: "offload"}
STAGES = {"lora": (0, 2, 3), "dora": (0, 2), "qlora": (0, 2), "int8": (0, 2)}


def cases(world: int, home: Path) -> list[Case]:
    split = {1: (4, 2), 2: (2, 2)}[world]
    found = [
        Case(
            f"{kind} zero{stage}", stage, *split, checkpointing=CHECKPOINTING[stage],
            save_at=3, export=True, eval_every=2, folder=str(home / f"{kind}-{stage}-{world}"), **KINDS[kind],
        )
        for kind in KINDS
        for stage in STAGES[kind]
    ]  # fmt: skip
    return found + [Case(f"{kind} plain", 0, 8, plain=True, **KINDS[kind]) for kind in KINDS if world == 1]


@pytest.fixture(scope="module")
def results(run_cases: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], dict[str, Any]]:
    home = tmp_path_factory.mktemp("adapters")
    return {(world, name): told for world in (1, 2) for name, told in run_cases(world, cases(world, home)).items()}


@pytest.mark.parametrize(
    ("world", "kind", "stage"), [(world, kind, stage) for world in (1, 2) for kind in KINDS for stage in STAGES[kind]]
)
def test_equals_the_plain_loop(results: dict[tuple[int, str], Any], world: int, kind: str, stage: int) -> None:
    told, reference = results[world, f"{kind} zero{stage}"], results[1, f"{kind} plain"]
    assert told["losses"] == pytest.approx(reference["losses"], rel=1e-5)
    assert told["grad_norms"] == pytest.approx(reference["grad_norms"], rel=1e-4)
    assert abs(reference["losses"][0] - reference["losses"][-1]) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_written_alone_and_read_back(results: dict[tuple[int, str], Any], kind: str) -> None:
    from dtrain.train.adapters import read

    folder = Path(results[2, f"{kind} zero2"]["folder"])
    assert (folder / "adapter_model.safetensors").stat().st_size < 300_000
    assert not (folder / "model.safetensors").exists()
    trained = {name: tensor for name, tensor in read(folder).named_parameters() if "lora_B" in name}
    assert len(trained) == 14
    assert all(tensor.abs().max() > 0 for tensor in trained.values())  # B starts at zero


def test_an_adapter_goes_on_where_it_was_saved(run_cases: Run, results: dict[tuple[int, str], Any]) -> None:
    before = results[2, "lora zero2"]
    after = run_cases(2, [Case("lora zero3", 3, 2, 2, load=True, folder=before["folder"], **KINDS["lora"])])
    assert after["lora zero3"]["losses"] == pytest.approx(before["losses"][3:], rel=1e-5)


def test_merged_equals_adapter(results: dict[tuple[int, str], Any], tmp_path: Path) -> None:
    import transformers

    from dtrain.train.merge import merge

    adapter = Path(results[2, "lora zero2"]["folder"])
    transformers.PreTrainedTokenizerFast(tokenizer_object=_tokenizer()).save_pretrained(adapter)
    assert merge(adapter, tmp_path / "merged") < 1e-4
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name for name, _ in merged.named_parameters())


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
