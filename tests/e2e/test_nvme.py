"""States and parameters on a drive: the same losses as without, also after a stop and a resume; nothing is left there.

Needs libaio and DeepSpeed's part for it, which takes minutes to build (`dtrain launch` builds it at its first use).
"""

from __future__ import annotations

import ctypes.util
import json
from pathlib import Path

import pytest

from tests.e2e.cli import Place, metrics, reached, said
from tests.waiting import wait_until

BUILT = any((Path.home() / ".cache" / "torch_extensions").glob("*/async_io/async_io.so"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("e2e"),
    pytest.mark.skipif(ctypes.util.find_library("aio") is None, reason="needs libaio (apt-get install libaio-dev)"),
    pytest.mark.skipif(not BUILT, reason="DeepSpeed's async_io is not built on this machine"),
]

STEPS = 12
RUN = ("launch", "tiny.yaml", "--profile", "cpu", "--set", f"max_steps={STEPS}", "--set", "save_steps=5",
       "--set", "zero_stage=3", "--set", "num_epochs=9")  # fmt: skip
DRIVE = ("--set", "offload_optimizer=nvme", "--set", "offload_params=nvme", "--set", "nvme_path=drive")


def widened(place: Place) -> Place:
    """Its model is large enough for DeepSpeed to swap: a MiB of fp32 numbers on each rank."""
    file = place.folder / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_size": 256, "intermediate_size": 1024}))
    tiny = place.folder / "tiny.yaml"
    tiny.write_text(tiny.read_text() + "reinit_weights: true\n")
    return place


def test_a_stopped_run_on_a_drive_ends_as_one_in_memory(place: Place) -> None:
    widened(place)
    plain = place.dtrain(*RUN, "--set", "output_dir=plain")
    assert plain.code == 0, plain.err
    started = place.dtrain(*RUN, *DRIVE, "--detach", "--json")
    assert started.code == 0, started.err
    run = place.run("out")
    wait_until(reached(run, 2))
    assert list((place.folder / "drive").glob("dtrain-*/**/exp_avg-*.swp"))
    assert place.dtrain("stop", started.document["id"]).code == 0
    assert said(run)["code"] == 75
    assert not list((place.folder / "drive").iterdir())
    resumed = place.dtrain("resume", started.document["id"])
    assert resumed.code == 0, resumed.out + resumed.err
    wanted = [line["loss"] for line in metrics(place.run("plain"))]
    assert [line["loss"] for line in metrics(run)] == pytest.approx(wanted, rel=1e-6)
    assert json.loads(run.plan.read_text())["nvme_gib"] > 0
    assert not list((place.folder / "drive").iterdir())
