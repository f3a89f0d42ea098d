"""Every mistake of the list in one clear message: what, where, the value, what is allowed, what to type."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dtrain import assets
from dtrain.paths import RunPaths
from dtrain.train.checkpoint import what_is_wrong
from tests.e2e.cli import Place, metrics, rank_pid, reached, said
from tests.waiting import wait_until


@dataclass(frozen=True)
class Mistake:
    name: str
    arguments: tuple[str, ...]
    told: dict[str, Any]
    """Fields of the error object; a text need only be part of what is said."""
    code: int = 2
    lines: tuple[str, ...] = ()
    """Added to the config."""
    env: dict[str, str] = field(default_factory=dict)


LAUNCH = ("launch", "tiny.yaml", "--profile", "cpux1")

BEFORE_ANYTHING_STARTS = [
    Mistake(
        "a misspelt key", LAUNCH, lines=("learning_rte: 1e-4",),
        told={"message": "unknown key", "file": "tiny.yaml", "line": 14, "key": "learning_rte", "fix": "learning_rate"},
    ),
    Mistake(
        "a misspelt key deep inside", (*LAUNCH, "--set", "datasets[0].type.field_ouput=story"),
        told={"message": "unknown key", "key": "datasets[0].type.field_ouput", "fix": "`field_output`"},
    ),
    Mistake(
        "a wrong type", LAUNCH, lines=("num_epochs: many",),
        told={"file": "tiny.yaml", "line": 14, "key": "num_epochs", "value": "many", "allowed": "number"},
    ),
    Mistake(
        "contradicting keys", LAUNCH, lines=("gradient_accumulation_steps: 2", "global_batch_size: 7"),
        told={"file": "tiny.yaml", "message": "global_batch_size", "fix": ""},
    ),
    Mistake(
        "a missing config", ("launch", "tiny.yml", "--profile", "cpux1"),
        told={"message": "no such file", "file": "tiny.yml", "fix": "tiny.yaml"},
    ),
    Mistake(
        "a missing model folder", (*LAUNCH, "--set", "base_model=./modle"),
        told={"message": "no such folder", "key": "base_model", "value": "./modle", "fix": "did you mean model?"},
    ),
    Mistake(
        "an unknown profile", ("launch", "tiny.yaml", "--profile", "a1000x8"),
        told={"message": "unknown profile", "key": "--profile", "value": "a1000x8", "allowed": "a100", "fix": "a100"},
    ),
    Mistake(
        "more ranks than GPUs", ("launch", "tiny.yaml", "--profile", "a100x8"), env={"CUDA_VISIBLE_DEVICES": ""},
        told={"message": "8 GPUs and this machine shows 0", "key": "--profile", "fix": "--profile auto"},
    ),
    Mistake(
        "more machines than one", ("launch", "tiny.yaml", "--profile", "cpux1x2"), code=5,
        told={"message": "2 nodes and this is one machine", "key": "--on"},
    ),
    Mistake(
        "no network for a model's name", (*LAUNCH, "--set", "base_model=nobody/nothing"),
        told={"key": "base_model", "value": "nobody/nothing", "message": "hub cannot be asked", "fix": "config.json"},
    ),
    Mistake(
        "a launcher nobody wrote", (*LAUNCH, "--on", "slrm"),
        told={"message": "no such launcher", "key": "--on", "value": "slrm", "allowed": "local"},
    ),
    Mistake(
        "a missing data file", (*LAUNCH, "--set", "datasets[0].path=rws.jsonl"),
        told={"message": "no such file", "key": "datasets[0].path", "value": "rws.jsonl", "fix": "rows.jsonl"},
    ),
    Mistake(
        "a missing data file, for SLURM", (*LAUNCH, "--on", "slurm", "--set", "datasets[0].path=rws.jsonl"),
        told={"message": "no such file", "key": "datasets[0].path", "value": "rws.jsonl", "fix": "rows.jsonl"},
    ),
    Mistake(
        "a DeepSpeed file that the plan does not follow", (*LAUNCH, "--set", "deepspeed={bf16: {enabled: true}}"),
        told={"message": "the DeepSpeed config says True", "key": "deepspeed.bf16.enabled", "fix": "auto"},
    ),
    Mistake(
        "an unknown option", (*LAUNCH, "--profil", "cpu"),
        told={"message": "--profile", "fix": "dtrain launch --help"},
    ),
    Mistake("an unknown command", ("lunch", "tiny.yaml"), told={"value": "lunch", "fix": "dtrain launch"}),
]  # fmt: skip


@pytest.mark.parametrize("mistake", BEFORE_ANYTHING_STARTS, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_nothing_is_written(place: Place, mistake: Mistake) -> None:
    spoilt(place, mistake)
    before = set(place.folder.rglob("*"))
    told = place.dtrain(*mistake.arguments, "--json", env=mistake.env)
    assert told.code == mistake.code, told.err
    assert told.document["error"]["code"] == mistake.code
    says(told.document["error"], mistake)
    words = place.dtrain(*mistake.arguments, env=mistake.env)
    assert words.code == mistake.code
    assert words.err.startswith("error: "), words.err
    assert "Traceback" not in words.err
    assert set(place.folder.rglob("*")) == before


def spoilt(place: Place, mistake: Mistake) -> None:
    config = place.folder / "tiny.yaml"
    config.write_text(config.read_text() + "".join(f"{line}\n" for line in mistake.lines))


def says(error: dict[str, Any], mistake: Mistake) -> None:
    assert set(error) == {"code", "message", "file", "line", "key", "value", "allowed", "fix"}
    for name, part in mistake.told.items():
        found = error[name]
        assert part in str(found) if isinstance(part, str) else part == found, (name, error)


def test_all_mistakes_of_a_file_are_told_at_once(place: Place) -> None:
    config = place.folder / "tiny.yaml"
    config.write_text(config.read_text() + "seed: x\nlearning_rte: 1\nlora_r: 0\n")
    told = place.dtrain(*LAUNCH, "--json").document
    assert [error["line"] for error in told["errors"]] == [14, 15, 16]
    assert told["error"] == told["errors"][0]


# a field that is not there: test_light; what else can be wrong in rows: tests/data
IN_THE_DATA = [
    Mistake(
        "empty data", (*LAUNCH, "--set", "datasets[0].path=empty.jsonl"),
        told={"message": "no rows", "file": "empty.jsonl", "key": "datasets[0].path"},
    ),
    Mistake(
        "a line cut in half", (*LAUNCH, "--set", "datasets[0].path=cut.jsonl"),
        told={"message": "row 6 is not a whole JSON object", "file": "cut.jsonl", "line": 6, "fix": "this line"},
    ),
    Mistake(
        "no network for a dataset's name", (*LAUNCH, "--set", "datasets[0].path=nobody/stories"),
        told={"message": "cannot be reached", "key": "datasets[0].path", "value": "nobody/stories", "fix": "local"},
    ),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mistake", IN_THE_DATA, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_bad_data_ends_the_run_before_it_began(place: Place, mistake: Mistake) -> None:
    (place.folder / "empty.jsonl").touch()
    lines = (place.folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (place.folder / "cut.jsonl").write_text("".join(lines[:6])[:-30])
    told = place.dtrain(*mistake.arguments, "--json")
    assert told.code == 2, told.err
    says(told.document["error"], mistake)
    assert str(mistake.told["message"]) in told.err
    assert "Traceback" not in told.err
    run = place.run("out")
    assert said(run)["code"] == 2
    assert sorted(path.name for path in run.output.iterdir()) == ["dtrain"]
    assert not run.metrics.exists()
    assert not run.checkpoints.exists()
    assert place.processes() == []
    status = place.dtrain("status", "tiny", "--json").document
    assert (status["state"], status["exit_code"]) == ("failed", 2)


# --- the machine ------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"NO DISK WAS FILLED: a tmpfs cannot be mounted here ({done.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    """To the last byte."""
    dd = ["dd", "if=/dev/zero", f"of={disk / 'filler'}", "bs=4096", "oflag=append", "conv=notrunc"]
    filled = subprocess.run(dd, capture_output=True, check=False)
    assert filled.returncode == 1  # it went on until there was no space


def fill_for_good(disk: Path, place: Place, run: RunPaths) -> None:
    """To the last byte, when there is a checkpoint, and no save holds a byte that it would give back: the one rank
    stands still."""
    wait_until(lambda: list(run.checkpoints.glob("step-*")))
    while True:
        rank = rank_pid(place, 0)
        os.kill(rank, signal.SIGSTOP)
        try:
            fill(disk)
            if not list(run.checkpoints.glob(".step-*")):  # neither one that is written nor one that is removed
                return
        finally:
            os.kill(rank, signal.SIGCONT)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.xdist_group("e2e")
def test_a_disk_that_fills_and_a_port_that_is_taken(place: Place) -> None:
    """The run goes on without checkpoints, says so, keeps the one it has, and writes the model: 0.5 MiB still fit."""
    disk = place.folder / "disk"
    with small_disk(disk, 16), socket.create_server(("127.0.0.1", 0)) as taken:
        settings = (
            "output_dir=disk/out", "max_steps=300", "num_epochs=30", "save_steps=2",
            f"launchers.local.master_port={taken.getsockname()[1]}",
        )  # fmt: skip
        started = place.dtrain(*LAUNCH, "--detach", *(word for one in settings for word in ("--set", one)))
        assert started.code == 0, started.err
        run = place.run("disk/out")
        wait_until(reached(run, 5))
        fill_for_good(disk, place, run)
        os.truncate(disk / "filler", (disk / "filler").stat().st_size - 2**20)  # a checkpoint has 1.5 MiB
        wait_until(run.exit.exists)
        assert said(run)["code"] == 0, said(run)
        assert "trying again with a free one" in run.launch_log.read_text()
        words = run.rank_log(0).read_text()
        assert "WARNING: the checkpoint of step" in words
        assert "No space left on device" in words
        assert metrics(run)[-1]["step"] == 300
        whole = [path for path in run.checkpoints.iterdir() if what_is_wrong(path) is None]
        assert whole
        assert whole == list(run.checkpoints.iterdir())  # and nothing half written lies beside
        assert (run.output / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.xdist_group("e2e")
def test_a_disk_without_a_single_free_byte(place: Place) -> None:
    """Neither metrics nor logs nor the model can be written, and the run still says what happened."""
    disk = place.folder / "disk"
    with small_disk(disk, 16):
        settings = ("output_dir=disk/out", "max_steps=200", "num_epochs=20", "save_steps=5")
        started = place.dtrain(*LAUNCH, "--detach", *(word for one in settings for word in ("--set", one)))
        assert started.code == 0, started.err
        run = place.run("disk/out")
        wait_until(reached(run, 10))
        fill_for_good(disk, place, run)
        assert metrics(run)[-1]["step"] < 200
        wait_until(run.exit.exists)
        assert said(run)["code"] == 1
        assert "its disk is full: free space there, then `dtrain resume`" in said(run)["reason"]
        wait_until(lambda: place.processes() == [])
        assert place.dtrain("status", "tiny", "--json").document["state"] == "failed"


FAKE_PYTHON = """\
#!/bin/sh
[ "$1" = --version ] && echo "Python 3.9.2" && exit
exec {python} -c "import sys; sys.version_info = (3, 9, 2); exec(sys.argv[1])" "$2"
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_python_that_is_too_old(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(assets.root() / name, tmp_path)
    fake = tmp_path / "python3.9"
    fake.write_text(FAKE_PYTHON.format(python=sys.executable))
    fake.chmod(0o755)
    made = subprocess.run(
        ["make", "setup", f"PYTHON={fake}"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert made.returncode == 2
    assert "dtrain needs Python 3.11 or newer" in made.stdout
    assert "Python 3.9.2. Try: make setup PYTHON=python3.12" in made.stdout
    assert not (tmp_path / ".venv").exists()
