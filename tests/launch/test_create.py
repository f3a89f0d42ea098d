from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtrain.config.load import load, loads
from dtrain.errors import BadInput
from dtrain.launch.create import create, discard, new_id, output_folder, refuse_taken, run_name, settled
from dtrain.launch.ending import Ending

FILES = {"config.yaml": "a: 1\n", "plan.json": "{}\n", "run.json": '{"id": "the-id", "name": "the-name"}'}


def test_ids_sort_by_time_and_do_not_repeat() -> None:
    assert re.fullmatch(r"20010909-014640-[0-9a-z]{4}", new_id(1_000_000_000))
    assert new_id(1_000_000_000) < new_id(1_000_000_001)
    assert len({new_id(0) for _ in range(100)}) > 90


def test_the_name_comes_from_the_flag_the_config_or_the_file(project: Path) -> None:
    config = load(project / "tiny.yaml").config
    assert run_name(config, project / "tiny.yaml", None) == "tiny"
    assert run_name(config.model_copy(update={"name": "said"}), project / "tiny.yaml", None) == "said"
    assert run_name(config.model_copy(update={"name": "said"}), project / "tiny.yaml", "flag") == "flag"
    for wrong in ("two\nlines", " padded", "bell\a"):
        with pytest.raises(BadInput):
            run_name(config, None, wrong)


def test_the_output_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    config = load(Path("tiny.yaml")).config
    assert output_folder(config, "tiny", "ID") == project / "runs" / "tiny-ID"
    assert output_folder(config, "../../etc/x y", "ID") == project / "runs" / "etc-x-y-ID"
    assert output_folder(config, "...", "ID") == project / "runs" / "run-ID"
    said = config.model_copy(update={"output_dir": "./models/../out"})
    assert output_folder(said, "tiny", "ID") == project / "out"


def test_the_kept_config_means_the_same_from_anywhere(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.parent)
    file = project / "tiny.yaml"
    kept = settled(load(file).config, file, "called", project / "out")
    assert kept.base_model == str(project / "model")
    assert kept.datasets[0].path == str(project / "rows.jsonl")
    assert (kept.name, kept.output_dir) == ("called", str(project / "out"))
    hub = loads("base_model: gpt2\ndatasets: [{path: some/set}]\n").config
    assert settled(hub, None, "x", project).base_model == "gpt2"
    assert settled(hub, None, "x", project).datasets[0].path == "some/set"


def test_a_run_is_there_as_a_whole(tmp_path: Path) -> None:
    paths = create(tmp_path / "a" / "b", FILES)
    assert {path.name: path.read_text() for path in paths.run.iterdir()} == FILES
    assert list(paths.output.iterdir()) == [paths.run]
    discard(paths)
    assert not paths.output.exists()


def test_only_one_of_two_clients_gets_the_folder(tmp_path: Path) -> None:
    create(tmp_path, FILES)
    with pytest.raises(BadInput, match="the output folder holds the-name"):
        create(tmp_path, FILES)
    assert list(tmp_path.iterdir()) == [tmp_path / "dtrain"]


@pytest.mark.parametrize(
    ("code", "words", "command"),
    [(0, "is finished", "dtrain resume"), (75, "was interrupted", "dtrain resume"), (1, "failed", "dtrain resume")],
)
def test_a_folder_with_a_run_is_refused_with_both_ways_on(tmp_path: Path, code: int, words: str, command: str) -> None:
    paths = create(tmp_path, FILES)
    Ending(code, "why", 3, 1.0).write(paths)
    with pytest.raises(BadInput, match=words) as caught:
        refuse_taken(tmp_path)
    assert command in str(caught.value.fix)
    assert "--set output_dir=" in str(caught.value.fix)


def test_somebody_elses_files_are_not_trampled(tmp_path: Path) -> None:
    refuse_taken(tmp_path)
    refuse_taken(tmp_path / "not there")
    (tmp_path / ".dtrain-1-ab.part").mkdir()
    refuse_taken(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BadInput, match="not a run's"):
        refuse_taken(tmp_path)
    with pytest.raises(BadInput, match="is a file"):
        refuse_taken(tmp_path / "thesis.tex")


def test_a_folder_below_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be made"):
        create(tmp_path / "file" / "run", FILES)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with 64 kB."""
    folder = tmp_path / "full"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder]).returncode != 0:
        pytest.skip("needs root, to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_nothing_behind(full_disk: Path) -> None:
    large = {**FILES, "plan.json": json.dumps({"filler": "x" * 100_000})}
    with pytest.raises(BadInput, match="No space left on device; nothing was left there") as caught:
        create(full_disk / "deep" / "run", large)
    assert caught.value.fix
    assert list(full_disk.iterdir()) == []
