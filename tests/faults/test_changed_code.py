"""Code that changed under a run is refused with the difference; `--force` goes on, here on another number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.cli import metrics, said
from tests.e2e.conftest import make_place_in

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e")]


def test_other_versions_are_refused_until_forced(tmp_path: Path) -> None:
    place = make_place_in(tmp_path)
    first = ("launch", "tiny.yaml", "--profile", "cpu", "--probe", "--set", "max_steps=4", "--set", "save_steps=2")
    done = place.dtrain(*first, "--set", "zero_stage=2", "--set", "micro_batch_size=1")
    run = place.run("out")
    assert done.code == 0, done.out + done.err
    probed = json.loads(run.probe.read_text())
    assert probed["measured"]["peak_allocated_gib"] > 0
    assert probed["planned"].keys() == probed["measured"].keys()
    assert "probe, at " in done.out + done.err
    _unfinished(run.checkpoint(2) / "manifest.json", run.checkpoint(4), run.exit)

    refused = place.dtrain("resume", "out")
    assert refused.code == 2, refused.out + refused.err
    assert "the code changed since the checkpoint was written: transformers 1.2.3 → " in refused.err + refused.out
    assert "--force" in refused.err + refused.out
    forced = place.dtrain("resume", "out", "--force", "--profile", "cpux1", "--set", "zero_stage=3")
    assert forced.code == 0, forced.out + forced.err
    assert said(run)["code"] == 0
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4]
    choice = json.loads(run.plan.read_text())["choice"]
    assert (choice["zero_stage"], choice["global_batch_size"]) == (3, 2)
    assert json.loads(run.about.read_text())["ranks_per_node"] == 1


def _unfinished(manifest: Path, last: Path, exit_json: Path) -> None:
    """As if the run had failed after its first checkpoint, which another transformers wrote."""
    from dtrain.train.checkpoint import sealed

    told = json.loads(manifest.read_text())
    told["versions"]["transformers"] = "1.2.3"
    manifest.write_text(json.dumps(sealed(told)))
    last.rename(last.with_name(".gone"))
    ending = json.loads(exit_json.read_text())
    exit_json.write_text(json.dumps(ending | {"code": 1, "reason": "the test said so"}))
