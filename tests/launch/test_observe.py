from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dtrain.files import write_json
from dtrain.launch.ending import Ending, last_checkpoint, put_aside, put_back, step_reached
from dtrain.launch.observe import Observer, Snapshot
from dtrain.launch.runlogs import last_lines, merged
from dtrain.paths import RunPaths


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    run = RunPaths(tmp_path)
    run.logs.mkdir(parents=True)
    return run


def log(paths: RunPaths, *lines: dict[str, Any], end: str = "\n") -> None:
    with paths.metrics.open("a") as stream:
        stream.write("\n".join(json.dumps(line) for line in lines) + end)


def test_a_run_without_files_is_preparing(paths: RunPaths) -> None:
    seen = Observer(paths).look()
    assert (seen.stage, seen.step, seen.steps, seen.lines) == ("preparing data", 0, None, ())
    assert seen.newest("loss") is None
    assert seen.seconds_left is None


def test_only_whole_lines_are_seen_and_each_once(paths: RunPaths) -> None:
    observer = Observer(paths)
    log(paths, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, end='\n{"step": 3, "lo')
    assert observer.look().curve("loss") == [(1, 3.0), (2, 2.0)]
    with paths.metrics.open("a") as stream:
        stream.write('ss": 1.0}\n')
    seen = observer.look()
    assert seen.curve("loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert (seen.step, seen.newest("loss")) == (3, 1.0)


def test_a_resumed_runs_rewritten_file_is_read_anew(paths: RunPaths) -> None:
    observer = Observer(paths)
    log(paths, *({"step": step, "loss": 1.0} for step in range(1, 6)))
    observer.look()
    beside = paths.metrics.with_suffix(".part")
    beside.write_text('{"step": 1, "loss": 9.0}\n')
    beside.replace(paths.metrics)
    assert observer.look().curve("loss") == [(1, 9.0)]


def test_a_damaged_line_is_left_out(paths: RunPaths) -> None:
    paths.metrics.write_bytes(b'{"step": 1, "loss": 1.0}\n\xff\xfe{half\n[1]\n{"step": 3, "loss": 2.0}\n')
    assert Observer(paths).look().curve("loss") == [(1, 1.0), (3, 2.0)]


def test_time_left_is_the_median_of_recent_steps(paths: RunPaths) -> None:
    write_json(paths.state, {"stage": "training", "step": 10, "steps": 30})
    log(paths, *({"step": step, "step_seconds": 2.0} for step in range(1, 10)), {"step": 10, "step_seconds": 100.0})
    seen = Observer(paths).look()
    assert (seen.step_seconds, seen.seconds_left) == (2.0, 40.0)


def test_words_for_people_are_heard_once(paths: RunPaths) -> None:
    paths.rank_log(0).write_text("noise\n[dtrain] of the last life\n")
    resumed = Observer(paths)
    resumed.skip_old_words()
    paths.launch_log.write_text("[dtrain] dropped 3 rows\nloading...\n[dtrain] unfin")
    assert resumed.look().words == ("dropped 3 rows",)
    with paths.launch_log.open("a") as stream:
        stream.write("ished\n")
    assert resumed.look().words == ("unfinished",)
    assert resumed.look().words == ()


@pytest.mark.parametrize(
    ("state", "data", "stage"),
    [
        (None, False, "preparing data"),
        ("starting", False, "preparing data"),
        (None, True, "starting ranks"),
        ("loading", True, "loading"),
        ("training", True, "training"),
        ("training", False, "training"),
    ],
)
def test_the_stage_in_words(paths: RunPaths, state: str | None, data: bool, stage: str) -> None:
    if state is not None:
        write_json(paths.state, {"stage": state, "step": 0})
    if data:
        write_json(paths.data, {})
    assert Observer(paths).look().stage == stage


def test_the_first_failing_ranks_log_comes_first(paths: RunPaths) -> None:
    for rank in (0, 1, 2, 10):
        paths.rank_log(rank).write_text(f"I am {rank}\n")
    paths.launch_log.write_text("torchrun\n")
    labels = [line.split("]")[0] + "]" for line in merged(paths, False, lambda: True)]
    assert labels == ["[launch]", "[rank 0]", "[rank 1]", "[rank 2]", "[rank 10]"]
    Ending(1, "why", 1, 1.0, rank=2).write(paths)
    labels = [line.split("]")[0] + "]" for line in merged(paths, False, lambda: True)]
    assert labels == ["[rank 2]", "[launch]", "[rank 0]", "[rank 1]", "[rank 10]"]


def test_following_hands_out_the_unfinished_last_line_at_the_end(paths: RunPaths) -> None:
    paths.rank_log(0).write_text("whole\nhal")
    answers = iter([False, True])

    def is_over() -> bool:
        over = next(answers)
        with paths.rank_log(0).open("a") as stream:
            stream.write("f\nlast" if not over else " words")
        return over

    assert list(merged(paths, True, is_over)) == ["[rank 0] whole", "[rank 0] half", "[rank 0] last words"]


def test_the_end_of_a_huge_log_is_read_without_reading_it_all(paths: RunPaths) -> None:
    paths.launch_log.write_bytes(b"x" * 99 + b"\n" + b"\xff line\n" * 200_000)
    assert last_lines(paths.launch_log, 2) == ["\ufffd line", "\ufffd line"]
    assert last_lines(paths.rank_log(7)) == []


def test_a_life_is_put_aside_and_back(paths: RunPaths) -> None:
    Ending(75, "why", 3, 1.0).write(paths)
    write_json(paths.state, {"step": 3})
    write_json(paths.rank_error(1), {"code": 1})
    before = {path.relative_to(paths.run): path.read_bytes() for path in paths.run.rglob("*.json")}
    aside = put_aside(paths)
    assert aside == paths.past / "1"
    assert Ending.read(paths) is None
    assert put_aside(paths) is None
    put_back(paths, aside)
    assert {path.relative_to(paths.run): path.read_bytes() for path in paths.run.rglob("*.json")} == before


def test_only_whole_checkpoints_count(paths: RunPaths) -> None:
    assert last_checkpoint(paths) is None
    for name in ("step-5", "step-10", ".step-20.part"):
        write_json(paths.checkpoints / name / "manifest.json", {})
    (paths.checkpoints / "step-30").mkdir()
    assert last_checkpoint(paths) == 10


def test_the_last_step_is_the_furthest_that_anything_tells(paths: RunPaths) -> None:
    assert step_reached(paths) == 0
    write_json(paths.state, {"step": 3})
    assert step_reached(paths) == 3
    log(paths, {"step": 7, "loss": 1.0})
    assert step_reached(paths) == 7
    write_json(paths.checkpoints / "step-8" / "manifest.json", {})
    assert step_reached(paths) == 8


def test_a_snapshot_of_nothing() -> None:
    assert Snapshot("pending", 0, None, (), ()).curve("loss") == []
