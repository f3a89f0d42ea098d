"""What a save writes, what it keeps, and what a disk that fails does to it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("deepspeed")

from dtrain.errors import RunFailed  # noqa: E402
from dtrain.paths import RunPaths  # noqa: E402
from dtrain.track.jsonl import Journal, read  # noqa: E402
from dtrain.train import checkpoint, restore, saver, tensor_file  # noqa: E402
from dtrain.train.checkpoint import Keep, States, newest_good  # noqa: E402
from dtrain.train.leaves import LEAF_BYTES, LeafReader  # noqa: E402
from dtrain.train.loop import Progress  # noqa: E402
from dtrain.train.ranks import Ranks  # noqa: E402
from dtrain.train.saver import Saver  # noqa: E402
from dtrain.train.tensor_file import extents  # noqa: E402


@pytest.mark.parametrize("past_the_cache", [False, True, "not here"])
def test_the_file_is_safetensors_and_its_hash_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, past_the_cache: bool | str
) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    tensors = {
        "codes": torch.arange(7, dtype=torch.uint8), "empty": torch.zeros(0), "half": torch.randn(5).bfloat16(),
        "0.master": torch.randn(tensor_file.CHUNK_BYTES // 4 + 3),
    }  # fmt: skip
    if past_the_cache:
        monkeypatch.setattr(tensor_file, "DIRECT_FROM_BYTES", 0)
    if past_the_cache == "not here":
        monkeypatch.setattr(tensor_file, "ALIGNED_BYTES", 1)  # the last block is then no multiple of the device's own
    told = tensor_file.write(tmp_path / "x.safetensors", tensor_file.Content(tensors, {"layout": "[]"}))
    content = (tmp_path / "x.safetensors").read_bytes()
    leaves = [content[at : at + LEAF_BYTES] for at in range(0, len(content), LEAF_BYTES)]
    assert len(leaves) == 3
    digest = hashlib.sha256(b"".join(hashlib.sha256(leaf).digest() for leaf in leaves)).hexdigest()
    assert told == tensor_file.Written(len(content), digest)
    with closing(LeafReader(threads=2)) as reader:
        assert reader.digest(tmp_path / "x.safetensors") == digest
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    with safe_open(tmp_path / "x.safetensors", "pt") as handle:
        assert handle.metadata() == {"layout": "[]"}


def a_saver(folder: Path, keep: Keep = Keep()) -> tuple[Saver, Any, list[str]]:  # noqa: B008 - frozen
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 64)).sum().backward()
    optimizer.step()
    words: list[str] = []
    ranks = Ranks(0, 0, 1, torch.device("cpu"))
    return Saver(States(model, optimizer, 0), RunPaths(folder), ranks, keep, {}, words.append), model, words


def test_what_is_saved_is_the_state_at_the_step_whatever_comes_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes its time, training does not wait for it, and the next save does."""
    real, mended = tensor_file.write, threading.Event()

    def slowly(path: Path, content: tensor_file.Content) -> tensor_file.Written:
        mended.wait()
        return real(path, content)

    monkeypatch.setattr(tensor_file, "write", slowly)
    monkeypatch.setattr(saver, "SLOW_SECONDS", 0.0)
    one, model, words = a_saver(tmp_path)
    before = model.weight.detach().clone()
    one.save(Progress(step=1))  # comes back while nothing is written
    model.weight.data.zero_()
    threading.Timer(0.2, mended.set).start()
    one.save(Progress(step=2))  # comes back when the first is
    assert mended.is_set()
    assert "training waited" in words[0]
    assert one.wait() is not None
    from safetensors.torch import load_file

    assert torch.equal(
        load_file(tmp_path / "dtrain/checkpoints/step-1/rank-0.safetensors")["0.master"], before.flatten()
    )


def test_a_disk_that_fails_keeps_the_old_checkpoint_and_the_next_save_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _, words = a_saver(tmp_path)
    one.save(Progress(step=1))
    one.wait()
    real = os.write

    def full(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    one.save(Progress(step=2))
    outcome = one.wait()
    monkeypatch.setattr(os, "write", real)
    assert outcome is not None
    assert "No space left" in str(outcome.problem)
    assert "WARNING: the checkpoint of step 2 could not be written" in words[0]
    found, damaged = newest_good(one.paths)
    assert (found.step if found else None, damaged) == (1, [])
    assert [path.name for path in one.paths.checkpoints.iterdir()] == ["step-1"]
    one.save(Progress(step=3))
    assert one.wait().problem is None  # type: ignore[union-attr]


def test_the_newest_the_best_and_one_of_every_so_many_hours_stay(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    for step in range(1, 9):
        folder = paths.checkpoint(step)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"time": step * 1800.0}))
    checkpoint.forget_old(paths, newest=7, best=2, keep=Keep(last=2, hours=1.5))
    left = sorted(checkpoint.step_of(folder) for folder in paths.checkpoints.iterdir())
    assert left == [1, 2, 4, 6, 7]  # 1, 4, 7: every 1.5 h; 2: the best; 8 was passed over by a resume


def test_a_clock_that_is_set_back_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps say what is newest; the clock only says which are hours apart."""
    one, _, _ = a_saver(tmp_path, Keep(last=2, hours=1.0))
    for step, hour in enumerate((10, 11, 12, 2, 3, 4), start=1):
        monkeypatch.setattr(time, "time", lambda hour=hour: hour * 3600.0)
        one.save(Progress(step=step))
        assert one.wait().problem is None  # type: ignore[union-attr]
    found, damaged = newest_good(one.paths)
    assert (found.step if found else None, damaged) == (6, [])
    assert {1, 2, 3, 5, 6} <= {checkpoint.step_of(folder) for folder in one.paths.checkpoints.iterdir()}


def test_lines_that_a_full_disk_did_not_take_are_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[str] = []
    journal = Journal(tmp_path / "metrics.jsonl", words.append)
    journal.add({"step": 1})
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:5]))  # half a line, as a full disk does
    journal.add({"step": 2})
    journal.add({"step": 3})
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")] == [1]
    monkeypatch.setattr(os, "write", real)
    journal.add({"step": 4})
    assert [line["step"] for line in read(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert len(words) == 2


def two_saved(folder: Path) -> tuple[Saver, Any]:
    """Checkpoints of steps 1 and 2, and the weights of the first."""
    one, model, _ = a_saver(folder)
    one.save(Progress(step=1))
    one.wait()
    first = model.weight.detach().clone()
    model.weight.data.mul_(2)
    one.save(Progress(step=2))
    one.wait()
    model.weight.data.zero_()
    return one, first


@pytest.mark.parametrize("where", ["header", "master", "states"])
def test_what_a_damaged_file_put_in_place_is_replaced_by_the_checkpoint_before(tmp_path: Path, where: str) -> None:
    one, first = two_saved(tmp_path)
    file = one.paths.checkpoint(2) / "rank-0.safetensors"
    at = {"header": 20, "master": extents(file)["0.master"].begin + 5, "states": file.stat().st_size - 5}[where]
    content = bytearray(file.read_bytes())
    content[at] ^= 0x10
    file.write_bytes(content)
    found, damaged = restore.newest(one.states, one.paths, one.ranks)
    assert (found.step if found else None) == 1
    assert damaged == ["step-2: rank-0.safetensors is damaged"]
    assert torch.equal(one.states.model.weight, first)
    moment = one.states.optimizer.state[one.states.model.weight]["exp_avg"]
    from safetensors.torch import load_file

    kept = load_file(one.paths.checkpoint(1) / "rank-0.safetensors")
    assert torch.equal(moment.flatten(), kept["0.exp_avg"])


def test_damaged_checkpoints_alone_are_no_reason_to_begin_at_0(tmp_path: Path) -> None:
    one, _ = two_saved(tmp_path)
    for step in (1, 2):
        (one.paths.checkpoint(step) / "manifest.json").write_text("{}")
    with pytest.raises(RunFailed, match=r"no checkpoint can be used: step-2: .*; step-1: "):
        restore.newest(one.states, one.paths, one.ranks)


def test_a_manifest_of_whole_files_hashed_at_once_is_still_read(tmp_path: Path) -> None:
    """As dtrain wrote them at schema_version 1."""
    one, first = two_saved(tmp_path)
    folder = one.paths.checkpoint(1)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    digest = hashlib.sha256((folder / "rank-0.safetensors").read_bytes()).hexdigest()
    size = (folder / "rank-0.safetensors").stat().st_size
    manifest |= {"schema_version": 1, "files": {"rank-0.safetensors": {"bytes": size, "sha256": digest}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(one.paths.checkpoint(2))
    found, damaged = restore.newest(one.states, one.paths, one.ranks)
    assert (found.step if found else None, damaged) == (1, [])
    assert torch.equal(one.states.model.weight, first)
    manifest["files"]["rank-0.safetensors"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert newest_good(one.paths) == (None, ["step-1: rank-0.safetensors is damaged"])
