"""Code that changed under a run is refused with the difference; `--force` goes on, here on another number of ranks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.e2e.cli import metrics, said
from tests.e2e.conftest import make_place_in

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e")]


OWN_CODE = """\
from transformers import LlamaForCausalLM


class OwnLlama(LlamaForCausalLM):
    pass
"""


def with_own_code(model: Path) -> Path:
    """Make it a model that comes with code (`trust_remote_code`); the file with it."""
    config = json.loads((model / "config.json").read_text())
    told = {"architectures": ["OwnLlama"], "auto_map": {"AutoModelForCausalLM": "own_llama.OwnLlama"}}
    (model / "config.json").write_text(json.dumps(config | told))
    code = model / "own_llama.py"
    code.write_text(OWN_CODE)
    return code


def test_other_versions_and_other_code_of_the_model_are_refused_until_forced(tmp_path: Path) -> None:
    place = make_place_in(tmp_path)
    code = with_own_code(place.folder / "model")
    settings = ("max_steps=4", "save_steps=2", "trust_remote_code=true")
    first = ("launch", "tiny.yaml", "--profile", "cpu", "--probe", *(w for one in settings for w in ("--set", one)))
    done = place.dtrain(*first, "--set", "zero_stage=2", "--set", "micro_batch_size=1")
    run = place.run("out")
    assert done.code == 0, done.out + done.err
    probed = json.loads(run.probe.read_text())
    assert probed["measured"]["peak_allocated_gib"] > 0
    assert probed["planned"].keys() == probed["measured"].keys()
    assert "probe, at " in done.out + done.err
    _unfinished(run.checkpoint(2) / "manifest.json", run.checkpoint(4), run.exit)

    code.write_text(OWN_CODE + "# another line\n")
    refused = place.dtrain("resume", "out")
    assert refused.code == 2, refused.out + refused.err
    assert "the code changed since the checkpoint was written: transformers 1.2.3 → " in refused.err + refused.out
    assert re.search(r"model_code [0-9a-f]{16} → [0-9a-f]{16}", refused.err + refused.out)
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
