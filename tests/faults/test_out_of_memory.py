"""Memory that really runs out: the operating system gives the whole run no more (`prlimit --as`), and it goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.cli import COMMAND, metrics, said
from tests.e2e.conftest import make_place_in
from tests.e2e.materials import stories, write_jsonl

pytestmark = [
    pytest.mark.slow, pytest.mark.xdist_group("e2e"),
    pytest.mark.skipif(shutil.which("prlimit") is None, reason="needs util-linux' prlimit"),
]  # fmt: skip

ROWS = 1600
ADDRESS_SPACE_BYTES = 2_500_000_000
"""A rank's libraries and threads take about 1.7 GB of it; the whole batch at once would need 1.3 GB more."""


def test_a_run_out_of_memory_goes_on_with_the_layout_that_fits(tmp_path: Path) -> None:
    place = make_place_in(tmp_path)
    write_jsonl(place.folder / "rows.jsonl", stories(ROWS))
    settings = ("max_steps=1", f"micro_batch_size={ROWS}", "sequence_len=160", "on_oom=replan")
    words = ("launch", "tiny.yaml", "--profile", "cpux1", *(word for one in settings for word in ("--set", one)))
    command = ["prlimit", f"--as={ADDRESS_SPACE_BYTES}", *COMMAND, *words, "--json"]
    done = subprocess.run(
        command, cwd=place.folder, env=place.environment(), capture_output=True, text=True, timeout=180, check=False
    )
    run = place.run("out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert said(run)["code"] == 0
    first = run.past / "1"
    reason = json.loads((first / "exit.json").read_text())["reason"]
    assert reason.startswith("rank 0: out of memory in the rehearsal before step 1: planned peak "), reason
    assert ", measured at least " in reason
    before, after = (json.loads(file.read_text())["choice"] for file in (first / "plan.json", run.plan))
    assert after["micro_batch_size"] < before["micro_batch_size"] == ROWS
    assert after["global_batch_size"] == before["global_batch_size"] == ROWS
    assert after["sequence_len"] == before["sequence_len"]
    [line] = metrics(run)
    assert line["trained_tokens"] > 50_000  # the whole batch in one step
