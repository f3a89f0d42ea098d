from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dtrain import assets
from dtrain.config.load import dump, find_file, load, loads
from dtrain.errors import BadInputs

SHIPPED = sorted((assets.root() / "configs").glob("*.yaml"))


def test_the_seed_means_what_it_says() -> None:
    loaded = load(assets.root() / "configs/storyteller.yaml")
    config = loaded.config
    assert (config.sequence_len, config.batch_size, config.micro_batch_size) == (1024, 4, 4)
    assert config.learning_rate == 2e-4
    lines = (assets.root() / "configs/storyteller.yaml").read_text().splitlines()
    for key, word in (("sequence_len", "sequence_length:"), ("datasets[0].type.format", "      format:")):
        origin = loaded.origin(key)
        assert lines[(origin.line or 0) - 1].startswith(word)
    assert loaded.origin("sequence_len").said_as == "sequence_length"
    assert loaded.origin("seed").text() == "default"
    assert any("accumulation = 4 / micro_batch_size 4 = 1" in note for note in loaded.notes)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_loads_and_survives_a_dump(path: Path) -> None:
    loaded = load(path)
    assert loads(dump(loaded.config)).config == loaded.config


def test_numbers_are_yaml_1_2(config: Any) -> None:
    loaded = config("learning_rate: 2e-5\nadam_epsilon: 1e-8\nsequence_len: 0x10\nwandb_name: on\n")
    assert loaded.config.learning_rate == 2e-5
    assert loaded.config.adam_epsilon == 1e-8
    assert loaded.config.sequence_len == 16
    assert loaded.config.wandb_name == "on"


def test_exact_casts_and_no_others(config: Any, errors: Any) -> None:
    loaded = config(
        "sequence_len: '2048'\nseed: 7.0\nlearning_rate: '2e-5'\nsample_packing: yes\nrevision_of_model: 12e4\n"
    )
    assert loaded.config.sequence_len == 2048
    assert loaded.config.seed == 7
    assert loaded.config.learning_rate == 2e-5
    assert loaded.config.sample_packing is True
    assert loaded.config.revision_of_model == "12e4"
    assert set(errors("sequence_len: 20.5\nlearning_rate: true\nseed: true\noptimizer: 3\nwandb_name: false\n")) == {
        "sequence_len", "learning_rate", "seed", "optimizer", "wandb_name",
    }  # fmt: skip


def test_all_errors_at_once_with_their_lines(errors: Any) -> None:
    found = errors("sequence_len: -1\nlearning_rat: 1\noptimizer: adam_torch\nbf16: maybe\nnum_epochs: .inf\n")
    assert {key: error.line for key, error in found.items()} == {
        "sequence_len": 4, "learning_rat": 5, "optimizer": 6, "bf16": 7, "num_epochs": 8,
    }  # fmt: skip
    assert all(error.file == "x.yaml" and error.exit_code == 2 for error in found.values())
    assert found["sequence_len"].allowed == "1 or more"
    assert found["learning_rat"].fix == "did you mean `learning_rate`?"
    assert "adamw_torch" in (found["optimizer"].fix or "")
    assert found["bf16"].allowed == "true or false or auto"
    assert (found["num_epochs"].allowed, found["num_epochs"].value) == ("a number", ".inf")  # JSON has no infinity


def test_nested_errors_name_their_path_and_do_not_repeat(errors: Any) -> None:
    found = errors(
        "    type: {feild_output: a, field_input: [b]}\n    field_output: story\n"
        "  - type: alpaca\nspecial_tokens: {pad: x}\n"
    )
    assert set(found) == {
        "datasets[0].type.feild_output", "datasets[0].type.field_input", "datasets[0].field_output", "datasets[1].path",
        "special_tokens.pad",
    }  # fmt: skip
    assert found["datasets[0].type.feild_output"].fix == "did you mean `field_output`?"
    assert found["datasets[0].field_output"].fix == "`field_output` belongs under datasets[].type"
    assert found["datasets[1].path"].line == 6


def test_a_misspelt_required_key_is_one_error(errors: Any) -> None:
    found = errors("", base="base_modle: x\ndatasets: [{path: a}]\n")
    assert set(found) == {"base_modle"}


def test_an_error_behind_an_alias_names_the_key_that_was_typed(errors: Any) -> None:
    assert "sequence_length" in errors("sequence_length: many\n")["sequence_len"].message


def test_a_key_twice_names_both_lines(errors: Any) -> None:
    found = errors("seed: 1\nseed: 2\n")
    assert found["seed"].line == 5
    assert "lines 4 and 5" in found["seed"].message


def test_null_is_unset_except_where_it_is_not_ours(config: Any) -> None:
    loaded = config("sequence_len:\nadapter: null\nlaunchers: {slurm: {extra: {a: null}}}\n")
    assert loaded.config.sequence_len == 512
    assert loaded.origin("sequence_len").text() == "default"
    assert loaded.config.launchers["slurm"].extra == {"a": None}


def test_launchers_are_open_for_their_own_keys(config: Any) -> None:
    loaded = config("launchers:\n  slurm: {partition: gpu, extra: {any: [1, thing]}}\n")
    assert loaded.config.launchers["slurm"].model_extra == {"partition": "gpu"}
    assert loaded.origin("launchers.slurm.partition").line == 5
    assert loads(dump(loaded.config)).config == loaded.config


def test_flags_overrule_and_are_their_own_origin(config: Any) -> None:
    loaded = config(
        "seed: 1\nsequence_length: 64\n", "seed=7", "datasets[0].path=b.csv", "sequence_len=128", "bf16=null"
    )
    assert (loaded.config.seed, loaded.config.datasets[0].path, loaded.config.sequence_len) == (7, "b.csv", 128)
    assert loaded.origin("seed").text() == "--set seed"
    assert loaded.origin("datasets[0].path").text() == "--set datasets[0].path"


def test_flags_add_entries_and_sections(config: Any) -> None:
    loaded = config("", "datasets[1].path=c", "special_tokens.pad_token=<pad>", "launchers.local.extra.x=[1, 2]")
    assert [row.path for row in loaded.config.datasets] == ["data.jsonl", "c"]
    assert loaded.config.special_tokens.pad_token == "<pad>"
    assert loaded.config.launchers["local"].extra == {"x": [1, 2]}


@pytest.mark.parametrize(
    "said", ["seed", "=3", "[0]=1", "a..b=1", "seed=[", "seed=*x", "datasets[5].path=x", "sed=1", ""]
)
def test_wrong_flags_are_bad_input(errors: Any, said: str) -> None:
    assert errors("", said)


def test_merge_keys_and_anchors(config: Any) -> None:
    loaded = config("  - &b {path: b, split: train}\n  - {<<: *b, path: c}\n")
    assert [(row.path, row.split) for row in loaded.config.datasets[1:]] == [("b", "train"), ("c", "train")]


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "", "  \n# nothing\n", "- a\n- b\n", "word", "a: b: c", "a: [", "\ta: 1", "a: !!python/object:os.system x",
        "a: !mine 3", "? [a]\n: b", "--- a\n--- b", "&a [*a]", "&a {b: *a}", "x: &x {<<: *x}", BOMB, "[" * 100_000,
        "- " * 5000 + "a", "a: \x00", "{" * 3000, "base_model: *nowhere", "<<: 3", "!!set {a, b}", "!!binary aGk=",
    ],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_what_is_no_config_is_one_clear_error(text: str) -> None:
    with pytest.raises(BadInputs) as caught:
        loads(text, "x.yaml")
    assert all(error.file == "x.yaml" for error in caught.value.errors)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "story.yaml").write_text("base_model: x\ndatasets: [{path: a}]\n")
    (tmp_path / "latin.yaml").write_bytes("base_model: é".encode("latin-1"))
    (tmp_path / "large.yaml").write_bytes(b"# " + b"x" * 1_000_001)
    for name, words in (
        ("stroy.yaml", "did you mean story.yaml?"),
        ("latin.yaml", "not UTF-8"),
        (".", "folder"),
        ("large.yaml", "too large"),
        ("/dev/zero", "too large"),
        ("story.yaml/inside", "cannot be read"),
        ("a\0b", "cannot be read"),
        ("x" * 5000, "cannot be read"),
    ):
        with pytest.raises(BadInputs) as caught:
            load(name)
        assert words in str(caught.value)
        assert len(caught.value.errors) == 1
    assert load("story.yaml").file == Path("story.yaml")
    with pytest.raises(BadInputs, match="too large"):
        load("story.yaml", ["deepspeed=/dev/zero"])


def test_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfbase_model: x\r\ndatasets: [{path: a}]\r\n")
    assert load(path).config.base_model == "x"


def test_find_file_looks_here_then_beside_then_in_the_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    beside = tmp_path / "configs"
    beside.mkdir()
    (beside / "a.json").write_text("{}")
    assert find_file("a.json", beside / "c.yaml") == beside / "a.json"
    assert find_file("a.json", None) is None
    (tmp_path / "a.json").write_text("{}")
    assert find_file("a.json", beside / "c.yaml") == Path("a.json")
    assert find_file("ds_configs/zero3.json", None) == assets.shipped("ds_configs/zero3.json")
    assert find_file("/ds_configs/zero3.json", None) is None
    assert find_file("x" * 5000, None) is None
