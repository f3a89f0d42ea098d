"""Real disks that take no more: a small tmpfs that is full, and one that turns read-only. The run's saver goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("deepspeed")

from dtrain.paths import RunPaths  # noqa: E402
from dtrain.train.checkpoint import Keep, States, newest_good  # noqa: E402
from dtrain.train.loop import Progress  # noqa: E402
from dtrain.train.ranks import Ranks  # noqa: E402
from dtrain.train.saver import Saver  # noqa: E402

SIZE_MIB = 3
WIDTH = 256
"""Weights of 0.25 MiB, 0.75 MiB with Adam's moments."""


def mounted(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def fill(disk: Path) -> Callable[[], None]:
    filler = disk / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=65536"], capture_output=True, check=False)
    return filler.unlink


def turn_read_only(disk: Path) -> Callable[[], None]:
    assert mounted(disk, "remount", "ro").returncode == 0
    return lambda: mounted(disk, "remount", "rw").check_returncode()


@pytest.mark.parametrize(("breaks", "words"), [(fill, "No space left"), (turn_read_only, "Read-only file system")])
def test_a_save_that_fails_costs_nothing_and_the_next_is_whole(
    tmp_path: Path, breaks: Callable[[Path], Callable[[], None]], words: str
) -> None:
    paths = RunPaths(tmp_path)
    paths.checkpoints.mkdir(parents=True)
    done = mounted(paths.checkpoints, f"size={SIZE_MIB}m")
    if done.returncode:
        pytest.skip(f"NO DISK WAS FILLED: a tmpfs cannot be mounted here ({done.stderr.strip()})")
    try:
        said: list[str] = []
        saver = a_saver(paths, said.append)
        assert saved(saver, 1) is None
        mended = breaks(paths.checkpoints)
        assert words in str(saved(saver, 2))
        assert "the checkpoint of step 2 could not be written" in said[0]
        found, damaged = newest_good(paths)
        assert (found.step if found else None, damaged) == (1, [])
        mended()
        assert saved(saver, 3) is None
        found, damaged = newest_good(paths)
        assert (found.step if found else None, damaged) == (3, [])
    finally:
        subprocess.run(["umount", "-l", str(paths.checkpoints)], check=True)


def a_saver(paths: RunPaths, say: Callable[[str], None]) -> Saver:
    model = torch.nn.Linear(WIDTH, WIDTH)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, WIDTH)).sum().backward()
    optimizer.step()
    return Saver(States(model, optimizer, 0), paths, Ranks(0, 0, 1, torch.device("cpu")), Keep(), {}, say)


def saved(saver: Saver, step: int) -> Any:
    """What went wrong, if anything."""
    saver.save(Progress(step=step))
    outcome = saver.wait()
    assert outcome is not None
    assert outcome.step == step
    return outcome.problem
