"""`dtrain profiles`, as a person types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def dtrain(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dtrain", "profiles", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, cwd=cwd)


def test_the_table_lists_cards_memory_and_prices(tmp_path: Path) -> None:
    answer = dtrain(cwd=tmp_path)
    assert answer.returncode == 0
    line = next(line for line in answer.stdout.splitlines() if line.startswith("a100x8 "))
    for part in ("NVIDIA A100 80 GB SXM", "79.15", "300", "312", "$"):
        assert part in line
    assert "cpux4" in answer.stdout


def test_one_machine_in_full_with_sources(tmp_path: Path) -> None:
    answer = dtrain("h100x8x4", cwd=tmp_path)
    assert answer.stdout.startswith("h100x8x4: 4 × 8 × NVIDIA H100 80 GB SXM\n")
    for part in ("79.18 GiB", "2048 GiB", "3200 Gbit/s", "p5.48xlarge", "ml-engineering", "$220.16/h"):
        assert part in answer.stdout


def test_json_is_one_document(tmp_path: Path) -> None:
    document = json.loads(dtrain("--json", cwd=tmp_path).stdout)
    assert document["schema_version"] == 1
    by_name = {one["name"]: one for one in document["profiles"]}
    assert by_name["a100-40gbx8"]["memory_gib"] == 39.49
    assert by_name["b200x8"]["offers"][0]["usd_per_hour"] == 53.52


def test_a_users_own_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("gpus_per_node: 2\ncatalogue: l40s\nnodez: 1\n")
    refused = dtrain("mine.yaml", "--json", cwd=tmp_path)
    error = json.loads(refused.stdout)["error"]
    assert (refused.returncode, error["file"], error["line"], error["key"]) == (2, "mine.yaml", 3, "nodez")
    (tmp_path / "mine.yaml").write_text("gpus_per_node: 2\ncatalogue: l40s\nusd_per_hour: 2.5\n")
    accepted = json.loads(dtrain("mine.yaml", "--json", cwd=tmp_path).stdout)["profiles"][0]
    assert (accepted["name"], accepted["gpus"], accepted["usd_per_hour"]) == ("mine", 2, 2.5)


def test_an_unknown_name_is_exit_2(tmp_path: Path) -> None:
    answer = dtrain("a1000x8", cwd=tmp_path)
    assert answer.returncode == 2
    assert "did you mean" in answer.stderr
    assert "Traceback" not in answer.stderr
