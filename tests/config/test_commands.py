"""The commands, as a person types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dtrain import assets
from dtrain.cli.main import main
from dtrain.config.document import markdown
from dtrain.config.load import load
from dtrain.show.config import rows

SEED = str(assets.root() / "configs/storyteller.yaml")


@pytest.fixture
def dtrain(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line; (exit code, stdout, stderr)."""

    def run(*args: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(args))
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run


def test_show_tells_each_value_and_its_origin(dtrain: Any) -> None:
    code, out, err = dtrain("config", "show", SEED, "--set", "num_epochs=1")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert lines["sequence_len"].endswith(f"{SEED}:20 (sequence_length)")
    assert lines["num_epochs"].split() == ["num_epochs", "1.0", "--set", "num_epochs"]
    assert lines["seed"].split() == ["seed", "42", "default"]
    assert "sequence_length" in err


def test_show_as_json_is_one_document(dtrain: Any) -> None:
    code, out, _ = dtrain("config", "show", SEED, "--json")
    document = json.loads(out)
    rows = {row["key"]: row for row in document["values"]}
    assert (code, document["schema_version"]) == (0, 1)
    assert rows["sequence_len"] == {
        "key": "sequence_len", "value": 1024, "origin": f"{SEED}:20", "kind": "file", "file": SEED, "line": 20,
        "said_as": "sequence_length",
    }  # fmt: skip


def test_check_says_ok_or_everything_that_is_wrong(dtrain: Any, tmp_path: Path) -> None:
    code, out, _ = dtrain("config", "check", SEED)
    assert (code, out) == (0, "ok\n")
    path = tmp_path / "a.yaml"
    path.write_text("base_model: x\ndatasets: [{path: a}]\nsequense_len: 5\nbf16: 3\n")
    code, out, err = dtrain("config", "check", str(path))
    assert (code, out) == (2, "")
    assert f"{path}:3: sequense_len: unknown key" in err
    assert f"{path}:4: bf16" in err
    code, out, err = dtrain("config", "check", str(path), "--json")
    document = json.loads(out)
    assert (code, err, len(document["errors"])) == (2, "", 2)
    assert document["error"]["line"] == 3
    assert document["error"]["fix"] == "did you mean `sequence_len`?"


def test_schema_accepts_the_seed_and_has_descriptions(dtrain: Any) -> None:
    code, out, _ = dtrain("config", "schema")
    schema = json.loads(out)
    assert code == 0
    assert schema["additionalProperties"] is False
    assert {"sequence_len", "sequence_length", "flash_attention", "wandb_watch"} <= set(schema["properties"])
    assert "rl" not in schema["properties"]
    assert "Another name" in schema["properties"]["sequence_length"]["description"]
    assert schema["properties"]["micro_batch_size"]["description"]
    assert "message_field_role" in schema["$defs"]["Dataset"]["properties"]
    assert {"enum": [True, False]} in schema["properties"]["gradient_checkpointing"]["anyOf"]


def test_import_tells_what_was_lost_and_writes_ours(dtrain: Any, tmp_path: Path) -> None:
    output = tmp_path / "ours.yaml"
    code, out, err = dtrain("import", SEED, "--output", str(output), "--set", "num_epochs=9")
    assert (code, out) == (0, "")
    assert "sequence_length: dropped in silence" in err
    assert "batch_size: no effect" in err
    ours, theirs = load(output).config, load(SEED, ["num_epochs=9"]).config
    assert ours == theirs
    code, _, err = dtrain("import", SEED, "--output", str(output))
    assert code == 2
    assert "there already" in err


def test_import_repairs_slips_and_leaves_out_what_axolotl_never_read(dtrain: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    path.write_text(
        "base_model: x\nadam_eps: 1e-9\ngptq_groupsize: 8\nnobody_knows: 1\ntest_value: true\nlearning_rate: 2e-5\n"
        "datasets:\n  - path: a\n    typo_here: 1\n    type: {field_output: o, feild_input: i}\n"
    )
    code, out, _ = dtrain("import", str(path), "--json")
    document = json.loads(out)
    assert code == 0
    assert {one["key"]: one["line"] for one in document["lost"]} == {
        "adam_eps": 2, "gptq_groupsize": 3, "nobody_knows": 4, "test_value": 5, "learning_rate": 6,
        "datasets[0].typo_here": 9, "datasets[0].type.feild_input": 10,
    }  # fmt: skip
    ours = tmp_path / "ours.yaml"
    ours.write_text(document["config"])
    assert load(ours).config.adam_epsilon == 1e-9


@pytest.mark.parametrize("text", ["", "- a", "rl: dpo\nbase_model: x\ndatasets: [{path: a}]\n", "a: ["])
def test_import_refuses_like_load(dtrain: Any, tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yml"
    path.write_text(text)
    code, out, err = dtrain("import", str(path))
    assert (code, out) == (2, "")
    assert str(path) in err


def test_the_document_is_up_to_date() -> None:
    written = Path(__file__).parents[2] / "docs/config.md"
    assert written.read_text() == markdown(), "python -m dtrain.config.document > docs/config.md"


def test_show_needs_no_torch() -> None:
    script = (
        "import sys; sys.argv = ['dtrain', 'config', 'show', sys.argv[1]]\n"
        "from dtrain.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'numpy', 'transformers', 'deepspeed', 'datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, SEED], check=True, stdout=subprocess.DEVNULL)


def test_the_planner_is_the_origin_of_what_was_left_open() -> None:
    found = {row.key: row for row in rows(load(SEED), {"zero_stage": 2, "micro_batch_size": 1, "adapter": None})}
    assert (found["zero_stage"].value, found["zero_stage"].origin.text()) == (2, "planner")
    assert (found["micro_batch_size"].value, found["micro_batch_size"].origin.line) == (4, 26)
    assert found["adapter"].origin.text() == "default"


def test_config_alone_prints_its_help(dtrain: Any) -> None:
    code, out, err = dtrain("config")
    assert (code, err) == (0, "")
    assert "schema" in out
