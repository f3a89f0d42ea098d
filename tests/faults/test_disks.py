"""Real disks that take no more: a small tmpfs that is full, and one that turns read-only; and one that the kernel slows
down. The run's saver goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("deepspeed")

from dtrain.paths import RunPaths  # noqa: E402
from dtrain.train import saver as saver_module  # noqa: E402
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


SLOW_WIDTH = 512
"""A checkpoint of 3 MiB: it would take a minute first, and then a second."""
SLOWEST, SLOW = 48 * 2**10, 3 * 2**20
"""Bytes per second."""
THROTTLE = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")


@contextmanager
def slow_disk(folder: Path, image: Path) -> Iterator[Callable[[int], object]]:
    """An ext4 on a loop device that the kernel lets write only so fast (cgroup version 1, blkio): yields what
    sets that, in bytes per second; 0 is as fast as it can."""
    with ExitStack() as undo:

        def step(*command: str) -> str:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"NO SLOW DISK WAS TRIED: {' '.join(command)}: {done.stderr.strip()}")
            return done.stdout.strip()

        step("truncate", "-s", "64M", str(image))
        step("mkfs.ext4", "-q", "-F", "-O", "^has_journal", str(image))
        device = step("losetup", "--find", "--show", str(image))
        undo.callback(subprocess.run, ["losetup", "--detach", device], check=True)
        step("mount", device, str(folder))
        undo.callback(subprocess.run, ["umount", str(folder)], check=True)
        number = os.stat(device).st_rdev
        name = f"{os.major(number)}:{os.minor(number)}"
        if not THROTTLE.exists():
            pytest.skip(f"NO SLOW DISK WAS TRIED: there is no {THROTTLE}")
        undo.callback(THROTTLE.write_text, f"{name} 0")
        yield lambda bytes_per_second: THROTTLE.write_text(f"{name} {bytes_per_second}")


def test_a_slow_disk_lets_training_go_on_and_then_wait_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "SLOW_SECONDS", 0.1)
    paths = RunPaths(tmp_path / "run")
    paths.checkpoints.mkdir(parents=True)
    with slow_disk(paths.checkpoints, tmp_path / "image") as let_it_write:
        let_it_write(SLOWEST)
        said: list[str] = []
        saver = a_saver(paths, said.append, SLOW_WIDTH)
        saver.save(Progress(step=1))
        assert saver.last is None  # it is still being written
        assert (said, newest_good(paths)) == ([], (None, []))
        let_it_write(SLOW)
        assert saved(saver, 2) is None
        assert len(said) == 1
        assert said[0].startswith("training waited ")
        assert "the checkpoint of step 1 (0.00 GiB) took " in said[0]
        found, damaged = newest_good(paths)
        assert (found.step if found else None, damaged) == (2, [])


def a_saver(paths: RunPaths, say: Callable[[str], None], width: int = WIDTH) -> Saver:
    model = torch.nn.Linear(width, width)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, width)).sum().backward()
    optimizer.step()
    return Saver(States(model, optimizer, 0), paths, Ranks(0, 0, 1, torch.device("cpu")), Keep(), {}, say)


def saved(saver: Saver, step: int) -> Any:
    """What went wrong, if anything."""
    saver.save(Progress(step=step))
    outcome = saver.wait()
    assert outcome is not None
    assert outcome.step == step
    return outcome.problem
