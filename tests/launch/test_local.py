from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from dtrain_launchers.local import _OPTIONS, LocalLauncher, LocalOptions, read_options

from dtrain.errors import BadInput, PartMissing
from dtrain.hardware.this_machine import Listed
from dtrain.launch import here
from dtrain.launch.api import Job
from dtrain.launch.spec import LaunchSpec
from dtrain.paths import RunPaths
from tests.launch.launcher_contract import LauncherContract


class TestLocal(LauncherContract):
    @pytest.fixture
    def launcher(self) -> LocalLauncher:
        return LocalLauncher()


GPU_JOB = Job("id", "name", Path("/run"), 1, 2, "cuda", plan={"profile": {"capacity_gib": 79.25}})
A100 = Listed("0", "GPU-1", "NVIDIA A100", "81920")


def test_more_ranks_than_gpus_is_bad_input() -> None:
    with pytest.raises(BadInput, match="has 2 GPUs and this machine shows 1") as caught:
        here.refuse_other_gpus(GPU_JOB, [A100])
    assert caught.value.exit_code == 2
    assert caught.value.fix
    with pytest.raises(BadInput, match="shows 0"):
        here.refuse_other_gpus(GPU_JOB, [])


def test_another_card_than_the_profile_says_is_bad_input() -> None:
    here.refuse_other_gpus(GPU_JOB, [A100, A100])
    with pytest.raises(BadInput, match="have 79 GiB, and a NVIDIA GeForce RTX 4090 here has 24"):
        here.refuse_other_gpus(GPU_JOB, [A100, Listed("1", "GPU-2", "NVIDIA GeForce RTX 4090", "24564")])


def test_several_nodes_are_refused_in_words(tmp_path: Path) -> None:
    (problem,) = LocalLauncher().check(Job("id", "name", tmp_path, 2, 2, "cpu"))
    assert "2 nodes" in problem


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PartMissing) as caught:
        LocalLauncher().check(Job("id", "name", tmp_path, 1, 2, "cpu"))
    assert caught.value.fix == "pip install 'dtrain[train]'"
    assert len(LocalLauncher().check()) == 3


def test_the_options_are_closed_and_checked() -> None:
    assert set(_OPTIONS) == {option.name for option in fields(LocalOptions)}
    told = {"grace_seconds": 5, "master_port": 29500, "env": {"A": 1}, "extra": None}
    assert read_options(told) == LocalOptions(5, 29500, {"A": "1"})
    for wrong in (
        {"grace_secs": 5}, {"grace_seconds": "soon"}, {"grace_seconds": -1}, {"master_port": 80}, {"master_port": True},
        {"env": ["A"]}, {"env": {"A=B": 1}}, {"env": {"A": "\0"}},
    ):  # fmt: skip
        with pytest.raises(BadInput) as caught:
            read_options(wrong)
        assert caught.value.key == f"launchers.local.{next(iter(wrong))}"
        assert caught.value.allowed


def test_what_is_rendered_is_what_the_supervisor_reads(tmp_path: Path) -> None:
    job = replace(GPU_JOB, folder=tmp_path, device="cpu", working_directory="/here", env={"A": "1"})
    ((path, text),) = LocalLauncher().render(job).files.items()
    Path(path).parent.mkdir()
    Path(path).write_text(text)
    spec = LaunchSpec.read(RunPaths(tmp_path))
    assert spec.as_text() == text
    assert spec.ranks[-4:] == ("-m", "dtrain", "train", str(tmp_path))
    assert (spec.working_directory, spec.env, spec.ranks_per_node) == ("/here", {"A": "1"}, 2)
