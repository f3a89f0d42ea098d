"""Memory that really runs out: the operating system gives a run no more, or kills a rank of it; and it goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.cli import COMMAND, Place, metrics, said
from tests.e2e.conftest import make_place_in
from tests.e2e.materials import stories, write_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e")]

ROWS = 1600
GROUP_BYTES = 2_200_000_000
"""The run's processes hold 1.4 GB of it without a batch; the whole batch at once would need 1.3 GB more."""
ADDRESS_SPACE_BYTES = 2_500_000_000
"""A rank's libraries and threads take about 1.7 GB of it; the whole batch at once would need 1.3 GB more."""


def through_prlimit(place: Place) -> tuple[str, ...]:
    """The operating system gives each process no more: its allocations fail."""
    if shutil.which("prlimit") is None:
        pytest.skip("needs util-linux' prlimit")
    return ("prlimit", f"--as={ADDRESS_SPACE_BYTES}")


def through_a_cgroup(place: Place) -> tuple[str, ...]:
    """The kernel kills the largest process of the group: the rank."""
    group = memory_group(f"dtrain-test-{os.getpid()}")
    return ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")


def memory_group(name: str) -> Path:
    """A cgroup of so many bytes, of either version."""
    for root, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = root / name
        try:
            group.mkdir()
            (group / limit).write_text(str(GROUP_BYTES))
        except OSError as error:
            why = error
            if group.is_dir():
                group.rmdir()
            continue
        return group
    pytest.skip(f"NO MEMORY CGROUP WAS MADE, and no process killed by the kernel: {why}")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    yield make_place_in(tmp_path)
    for group in Path("/sys/fs/cgroup").glob(f"**/dtrain-test-{os.getpid()}"):
        group.rmdir()


@pytest.mark.parametrize(
    ("limited", "words", "planned"),
    [
        (through_prlimit, "out of memory in the rehearsal before step 1: planned peak ", ", measured at least "),
        (through_a_cgroup, "out of host memory, the kernel killed it, as ", " on this machine, its 1 rank held "),
    ],
)
def test_a_run_out_of_memory_goes_on_with_the_layout_that_fits(
    place: Place, limited: Callable[[Place], tuple[str, ...]], words: str, planned: str
) -> None:
    write_jsonl(place.folder / "rows.jsonl", stories(ROWS))
    settings = ("max_steps=1", f"micro_batch_size={ROWS}", "sequence_len=160", "on_oom=replan")
    told = ("launch", "tiny.yaml", "--profile", "cpux1", *(word for one in settings for word in ("--set", one)))
    done = subprocess.run(
        [*limited(place), *COMMAND, *told, "--json"], cwd=place.folder, env=place.environment(), capture_output=True,
        text=True, timeout=180, check=False,
    )  # fmt: skip
    run = place.run("out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert said(run)["code"] == 0
    first = run.past / "1"
    reason = json.loads((first / "exit.json").read_text())["reason"]
    assert reason.startswith(f"rank 0: {words}"), reason
    assert planned in reason
    last = max(run.past.glob("*/plan.json"), key=lambda file: int(file.parent.name))
    before, after = (json.loads(file.read_text())["choice"] for file in (first / "plan.json", run.plan))
    assert after["micro_batch_size"] < json.loads(last.read_text())["choice"]["micro_batch_size"] <= ROWS
    assert after["global_batch_size"] == before["global_batch_size"] == ROWS
    assert after["sequence_len"] == before["sequence_len"]
    [line] = metrics(run)
    assert line["trained_tokens"] > 50_000  # the whole batch in one step
