"""The hub answers when a run begins and no more when it goes on: what was fetched is enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e import hub
from tests.e2e.cli import Place, metrics, said
from tests.e2e.conftest import YAML
from tests.e2e.materials import stories, write_jsonl, write_model

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e")]


def test_a_run_goes_on_without_the_hub_it_began_with(tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "hub" / "data" / "train.jsonl", stories(40)).parent
    repos = [
        hub.Repo("models", "us/tiny", write_model(tmp_path / "hub" / "model")),
        hub.Repo("datasets", "us/rows", rows),
    ]
    place = Place(tmp_path / "place")
    place.folder.mkdir()
    (place.folder / "hub.yaml").write_text(YAML.replace("./model", "us/tiny").replace("rows.jsonl", "us/rows"))
    with hub.serving(repos) as served:
        words = ("launch", "hub.yaml", "--profile", "cpux1", "--set", "max_steps=4", "--set", "save_steps=2")
        done = place.dtrain(*words, env={"HF_ENDPOINT": served.url})
        assert done.code == 0, done.out + done.err
    run = place.run("out")
    run.checkpoint(4).rename(run.checkpoints / ".gone")
    ending = json.loads(run.exit.read_text())
    run.exit.write_text(json.dumps(ending | {"code": 1, "reason": "the test said so"}))
    losses = [line["loss"] for line in metrics(run)]
    again = place.dtrain("resume", "out")
    assert again.code == 0, again.out + again.err
    assert said(run)["code"] == 0
    assert [line["loss"] for line in metrics(run)] == losses
