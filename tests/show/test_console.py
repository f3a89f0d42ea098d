"""Terminals and readers that are not what one expects: nothing ends with a traceback, or with another exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from dtrain import assets

PLAN = (sys.executable, "-m", "dtrain", "plan", str(assets.root() / "configs/storyteller.yaml"), "--profile", "a100x8")


def test_a_terminal_without_our_letters_and_a_reader_who_left(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONIOENCODING": "ascii", "DTRAIN_HOME": str(tmp_path)}
    ran = subprocess.run(PLAN, env=env, capture_output=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, b"")
    reader, writer = os.pipe()
    os.close(reader)
    left = subprocess.run(PLAN, env=env, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (left.returncode, left.stderr) == (0, b"")


def test_a_home_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    env = os.environ | {"DTRAIN_HOME": str(tmp_path / "file" / "home")}
    asked = [sys.executable, "-m", "dtrain", "preview", str(assets.root() / "configs/storyteller-tiny.yaml"), "--json"]
    ran = subprocess.run(asked, env=env, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2, ran.stderr
    assert "DTRAIN_HOME" in json.loads(ran.stdout)["error"]["fix"]
    assert subprocess.run(PLAN, env=env, capture_output=True, timeout=60).returncode == 0
