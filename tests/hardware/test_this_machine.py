"""What a process may use of the machine it runs on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dtrain.hardware import this_machine


@pytest.mark.parametrize(("quota", "allowed"), [("max 100000", 8), ("200000 100000", 2), ("1000 100000", 1), ("?", 8)])
def test_cores_are_those_of_the_mask_and_of_the_containers_quota(
    quota: str, allowed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(this_machine, "_CGROUP_CPU", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert this_machine.cores() == allowed
