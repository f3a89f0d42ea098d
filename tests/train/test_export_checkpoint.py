"""A model of some hundred MB comes out of a checkpoint in the memory of one shard, and is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the training road needs dtrain[train]")
pytest.importorskip("deepspeed", reason="the training road needs dtrain[train]")

ROOT = Path(__file__).resolve().parents[2]
SHARD_MIB = 32


@pytest.mark.slow
@pytest.mark.xdist_group("gloo")
def test_export_takes_the_memory_of_a_shard(tmp_path: Path) -> None:
    for _ in ("write the checkpoint", "export it, in a process that never held the model"):
        command = [sys.executable, "-m", "tests.train.streaming", str(tmp_path), str(SHARD_MIB)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["model_mib"] > 300
    # a shard being gathered, one tensor's pieces in mapped files, one shard mapped to compare; libraries' own buffers
    assert told["grown_mib"] < 2 * SHARD_MIB + 2 * told["largest_mib"] + 60, told
    assert told["merged_change"] == 0
    assert told["merged_grown_mib"] < 1.25 * told["model_mib"], told  # 912 MiB grow no more; by peft it is 2.5 models

    import torch
    import transformers

    from dtrain.train import own_attention
    from dtrain.train.attention import UNLIMITED

    out = tmp_path / "out"
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 5
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.generation_config.eos_token_id in (2, [2])
    assert own_attention.sight_in(out).memory == 64
    assert own_attention.sight_in(tmp_path / "merged") == UNLIMITED
    at = 0
    for parameter in model.parameters():
        wanted = (torch.arange(at, at + parameter.numel(), dtype=torch.int64) % 65_521).float() / 2**20
        assert torch.equal(parameter.flatten(), wanted)
        at += parameter.numel()


def test_the_newest_export_beside_a_run_is_its_model(tmp_path: Path) -> None:
    from dtrain.cli.model_folder import newest_export

    assert newest_export(tmp_path) is None
    for name, file in (("export-90", "config.json"), ("merged-120", "config.json"), ("export-300", "half.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    assert newest_export(tmp_path) == tmp_path / "merged-120"
