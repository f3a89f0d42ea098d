"""What a drive needs is told before any weight is loaded; tests/e2e/test_nvme.py trains on one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the training road needs dtrain[train]")
pytest.importorskip("deepspeed", reason="the training road needs dtrain[train]")

from dtrain.config.schema import Config
from dtrain.errors import PartMissing
from dtrain.train import nvme


def config(**more: str) -> Config:
    return Config.model_validate({"base_model": "none", "datasets": [{"path": "none"}], **more})


def test_a_machine_that_cannot_build_the_part_for_drives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    with pytest.raises(PartMissing, match="libaio") as error:
        nvme.prepare(config(nvme_path=str(tmp_path)), tmp_path / "run", 1.0, is_first_here=True)
    assert error.value.exit_code == 4
    assert "apt-get" in (error.value.fix or "")


def test_two_runs_on_one_drive_have_folders_of_their_own(tmp_path: Path) -> None:
    asked = config(nvme_path=str(tmp_path), offload_params="nvme")
    one, other = (nvme.folder_of(asked, Path(output)) for output in ("/runs/a", "/runs/b"))
    assert one != other
    assert one.parent == other.parent == tmp_path


def test_the_lock_of_a_build_that_was_killed_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "py311_cpu" / "pin_memory" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (0, 0))
    nvme.forget_dead_builds()
    assert not lock.exists()
    nvme.forget_dead_builds()
