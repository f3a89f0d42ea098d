"""From the command line: a run whose rows, and one whose layers, lie on both ranks are one and the same run."""

from __future__ import annotations

import json

import pytest

from tests.e2e.cli import Place, metrics

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e")]

RUN = (
    "launch", "tiny.yaml", "--profile", "cpu", "--set", "global_batch_size=4", "--set", "zero_stage=1",
    "--set", "sample_packing=true", "--set", "val_set_size=4",
)  # fmt: skip


def test_rows_or_layers_over_ranks_are_the_same_run(place: Place) -> None:
    told = {}
    for key in ("sequence_parallel_size", "tensor_parallel_size"):
        done = place.dtrain(*RUN, "--set", f"{key}=2", "--set", f"output_dir=./{key}")
        assert done.code == 0, done.out + done.err
        plan = json.loads(place.run(key).plan.read_text())
        assert any(line.startswith(f"{key} 2") for line in plan["reasons"])
        assert plan["choice"]["global_batch_size"] == 4
        told[key] = metrics(place.run(key))
        assert (place.folder / key / "model.safetensors").is_file()
    rows, layers = told.values()
    for name in ("loss", "grad_norm", "eval_loss", "tokens", "trained_tokens", "tokens_seen"):
        ours = [line[name] for line in rows if name in line]
        assert ours == pytest.approx([line[name] for line in layers if name in line], rel=1e-5)
        assert ours
        assert all(ours)
