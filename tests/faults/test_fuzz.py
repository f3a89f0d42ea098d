"""Whatever lies in a run's folder or in the registry is data: a clear error, never a crash, never code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtrain.errors import DtrainError
from dtrain.launch import registry
from dtrain.launch.ending import Ending, last_checkpoint, step_reached
from dtrain.launch.standing import folder_status
from dtrain.paths import RunPaths
from dtrain.planner.choice import Choice

SCALARS = (
    st.none() | st.booleans() | st.integers(-10, 2**70) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["../../etc/passwd", "/etc/passwd", "rank-0.safetensors", "", "step-1", "__reduce__"])
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner)
)
BYTES = st.binary(max_size=200) | ANYTHING.map(lambda value: json.dumps(value).encode())
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def named(error: DtrainError) -> None:
    """It says where."""
    assert error.file is not None


def with_one_thing_changed(document: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The document with one value, at any depth, exchanged for anything, or gone."""
    places: list[tuple[Any, ...]] = []

    def walk(value: Any, path: tuple[Any, ...]) -> None:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            places.append((*path, key))
            if isinstance(inner, dict | list):
                walk(inner, (*path, key))

    walk(document, ())

    def changed(place: tuple[Any, ...], value: Any, gone: bool) -> dict[str, Any]:
        copy = json.loads(json.dumps(document))
        inner = copy
        for key in place[:-1]:
            inner = inner[key]
        if gone:
            del inner[place[-1]]
        else:
            inner[place[-1]] = value
        return dict(copy)

    return st.builds(changed, st.sampled_from(places), ANYTHING, st.booleans())


# --- checkpoints ----------------------------------------------------------------------------------------------------

MANIFEST: dict[str, Any] = {
    "schema_version": 1, "step": 3, "world": 1, "zero_stage": 0, "time": 1.0, "versions": {"torch": "2"},
    "progress": {"step": 3, "tokens_seen": 5, "best_eval_loss": None, "best_step": None, "evals_without_gain": 0},
    "schedule": {"seed": 1}, "wandb_run_id": None, "files": {"rank-0.safetensors": {"bytes": 0, "sha256": "x"}},
}  # fmt: skip


@quick
@given(document=with_one_thing_changed(MANIFEST) | ANYTHING)
def test_any_manifest_is_judged(tmp_path: Path, document: Any) -> None:
    pytest.importorskip("torch")
    from dtrain.train.checkpoint import newest_good

    paths = RunPaths(tmp_path)
    folder = paths.checkpoint(3)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rank-0.safetensors").write_bytes(b"")
    (folder / "manifest.json").write_text(json.dumps(document))
    found, told = newest_good(paths)
    assert found is None or found.folder == folder
    assert (found is None) == bool(told)


@quick
@given(layout=BYTES, extra=BYTES, numel=st.integers(0, 5))
def test_any_state_file_is_read_or_refused(tmp_path: Path, layout: bytes, extra: bytes, numel: int) -> None:
    torch = pytest.importorskip("torch")
    from dtrain.train import state_files, tensor_file
    from dtrain.train.partitions import Partition, Piece

    metadata = {"layout": layout.decode("latin-1"), "extra": extra.decode("latin-1")}
    content = tensor_file.Content({"0.master": torch.zeros(numel)}, metadata)
    tensor_file.write(state_files.state_file(tmp_path, 0), content)
    master = torch.zeros(4)
    try:
        state_files.read(tmp_path, [Partition(master, master, {}, (Piece("w", 0, 0, 4),))])
        state_files.extra_of(tmp_path, 0)
    except DtrainError as error:
        named(error)


PIECES = [{"pieces": [{"name": "w", "start": 0, "offset": 0, "length": 4}], "scalars": {}}]


@quick
@given(layout=st.lists(with_one_thing_changed(PIECES[0]), max_size=2))
def test_pieces_cannot_lie_outside(tmp_path: Path, layout: list[Any]) -> None:
    torch = pytest.importorskip("torch")
    from dtrain.train import state_files, tensor_file
    from dtrain.train.partitions import Partition, Piece

    content = tensor_file.Content({"0.master": torch.arange(4.0)}, {"layout": json.dumps(layout), "extra": "{}"})
    tensor_file.write(state_files.state_file(tmp_path, 0), content)
    master = torch.zeros(6)
    try:
        state_files.read(tmp_path, [Partition(master, master, {}, (Piece("w", 0, 1, 4),))])
    except DtrainError:
        return
    assert master.tolist() == [0, 0, 1, 2, 3, 0]


@quick
@given(content=st.binary(max_size=300))
def test_any_bytes_as_a_state_file(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("torch")
    from dtrain.train import state_files

    state_files.state_file(tmp_path, 0).write_bytes(content)
    with pytest.raises(DtrainError):
        state_files.stored_in(tmp_path)


# --- runs -----------------------------------------------------------------------------------------------------------

CHOICE = Choice(1, "none", "none", 2, 4, 8, "none", 1, "sdpa", "chunked", "fp32", "adamw_torch", None, 512).as_json()


@quick
@given(document=with_one_thing_changed(CHOICE) | ANYTHING)
def test_any_choice_is_taken_or_refused(document: Any) -> None:
    try:
        choice = Choice.from_json(document)
    except DtrainError:
        return
    assert json.loads(json.dumps(choice.as_json())).items() <= {**CHOICE, **document}.items()


@quick
@given(files=st.dictionaries(st.sampled_from(["exit.json", "state.json", "supervisor.json", "metrics.jsonl"]), BYTES))
def test_any_folder_has_a_status_or_an_error(tmp_path: Path, files: dict[str, bytes]) -> None:
    paths = RunPaths(tmp_path)
    paths.run.mkdir(exist_ok=True)
    for name in ("exit.json", "state.json", "supervisor.json", "metrics.jsonl"):
        (paths.run / name).unlink(missing_ok=True)
    for name, content in files.items():
        (paths.run / name).write_bytes(content)
    for look in (folder_status, Ending.read, step_reached, last_checkpoint):
        try:
            look(paths)
        except DtrainError as error:
            named(error)


@quick
@given(content=BYTES)
def test_any_entry_of_the_registry_is_read_or_told(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "one.json"
    file.write_bytes(content)
    assert isinstance(registry.read(file), registry.Entry | registry.Broken)


def test_nothing_of_it_can_run(tmp_path: Path) -> None:
    """A pickle under a checkpoint's name is bytes that are no safetensors."""
    pytest.importorskip("torch")
    import pickle

    from dtrain.train import state_files

    class Runs:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    state_files.state_file(tmp_path, 0).write_bytes(pickle.dumps(Runs()))
    with pytest.raises(DtrainError):
        state_files.stored_in(tmp_path)
    assert not (tmp_path / "ran").exists()
