from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dtrain.launch import doctor
from dtrain.launch.doctor import examine


def test_everything_is_looked_at_and_each_gap_has_a_command() -> None:
    found = {finding.part: finding for finding in examine()}
    assert {"python", "torch", "C++ compiler", "host", "disk", "dtrain's home", "launcher local"} <= set(found)
    assert all(finding.fix for finding in found.values() if finding.state == "missing")
    assert found["python"].state == "ok"


def test_a_missing_package_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PARTS", (("no-such-package-of-ours", "training", "pip install 'dtrain[train]'"),))
    (finding,) = [finding for finding in examine() if finding.part == "no-such-package-of-ours"]
    assert (finding.state, finding.fix) == ("missing", "pip install 'dtrain[train]'")


def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DTRAIN_HOME", "/proc/nowhere/dtrain")
    (finding,) = [finding for finding in examine() if finding.part == "dtrain's home"]
    assert finding.state == "missing" or "/proc" in finding.found


def test_it_imports_nothing_heavy() -> None:
    script = (
        "import sys; from dtrain.launch.doctor import examine; examine()\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'deepspeed', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    from dtrain.cli.main import main

    with pytest.raises(SystemExit):
        main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert {"part", "state", "found", "why", "fix"} == set(document["findings"][0])


def test_a_probe_that_crashes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE", "import os, sys; print('driver mismatch', file=sys.stderr); os.abort()")
    (finding,) = [finding for finding in examine(full=True) if "tried" in finding.part]
    assert finding.state == "missing"
    assert "driver mismatch" in finding.found
