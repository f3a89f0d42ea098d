"""As a person types it, at AWS: a real model on two ranks of a rented machine, and the mistakes one makes before."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from dtrain.launch.api import Job
from tests.cloud.aws_world import AwsWorld
from tests.cloud.conftest import VENV
from tests.cloud.datacenter import Datacenter
from tests.ssh.typed import MODEL, Typed


@pytest.fixture(scope="module")
def world(datacenter: Datacenter) -> Iterator[AwsWorld]:
    made = AwsWorld(datacenter)
    yield made
    made.close()


@pytest.fixture
def dtrain(tmp_path: Path, world: AwsWorld, cloud_job: Callable[..., Job]) -> Typed:
    """In a folder with a config, a model's config.json and some rows."""
    folder = tmp_path / "project"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text(json.dumps(MODEL))
    rows = [{"instruction": f"count {number}", "output": f"{number} " * 8} for number in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "base_model": "./model", "reinit_weights": True, "train_tokenizer": {"vocab_size": 300}, "max_steps": 4,
        "datasets": [{"path": "rows.jsonl", "type": "alpaca"}], "sequence_len": 128, "micro_batch_size": 1,
        "bf16": False,
        "launchers": {"aws": {**world.options, "venv": VENV, "poll_seconds": 0.3, "env": {"OMP_NUM_THREADS": 1}}},
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return Typed(folder)


LAUNCH = ("launch", "tiny.yaml", "--profile", "cpu", "--on", "aws", "--yes")


@pytest.mark.slow
def test_a_model_comes_home_from_a_rented_machine(dtrain: Typed, world: AwsWorld) -> None:
    told = dtrain.json(*LAUNCH, "--max-cost", "1")
    (folder,) = dtrain.folder.glob("runs/*")
    assert (told["state"], told["exit_code"], told["report"]["measured"]["steps"]) == ("done", 0, 4)
    assert (folder / "model.safetensors").exists()
    assert (world.machines(), len(world.created)) == ([], 1)
    told = dtrain.json("gc", "--dry-run")
    assert (told["runs"], told["asked"], told["problems"]) == ([], ["aws"], [])


def test_mistakes_are_told_in_a_line_and_nothing_is_rented(
    dtrain: Typed, world: AwsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = dtrain.json(*LAUNCH, "--max-cost", "0.001", code=2)["error"]
    assert told["key"] == "--max-cost"
    assert "dtrain rent" in told["fix"]
    told = dtrain.json(*LAUNCH[:-1], "--dry-run")
    assert [one["action"] for one in told["requests"]][-1] == "RunInstances"
    assert "PRIVATE KEY" not in json.dumps(told)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    told = dtrain.json(*LAUNCH, code=5)["error"]
    assert told["message"] == "no AWS credentials were found"
    assert (world.created, list(dtrain.folder.glob("runs/*"))) == ([], [])
