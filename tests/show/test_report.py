from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dtrain.files import write_json
from dtrain.launch.api import Status
from dtrain.launch.ending import Ending
from dtrain.launch.registry import Broken, Entry
from dtrain.paths import RunPaths
from dtrain.show.report import failure_of, print_end
from dtrain.show.runs import print_runs


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    RunPaths(tmp_path).logs.mkdir(parents=True)
    return Entry("20260101-000000-abcd", "my story", str(tmp_path), "local", "cpu", 1.0)


def printed(entry: Entry, status: Status, width: int = 100) -> str:
    out = io.StringIO()
    print_end(entry, status, Console(file=out, width=width, highlight=False))
    return out.getvalue()


def paths_of(entry: Entry) -> RunPaths:
    return RunPaths(Path(entry.folder))


def test_the_end_of_a_good_run(entry: Entry) -> None:
    paths = paths_of(entry)
    report = {
        "planned": {"peak_allocated_gib": 1.5, "step_seconds": 0.25, "steps": 10},
        "measured": {
            "peak_allocated_gib": 1.25,
            "step_seconds": 0.5,
            "training_seconds": 75,
            "last_loss": 2.0,
        },
    }
    write_json(paths.report, report)
    write_json(paths.samples, [{"prompt": "A dragon [red]", "text": "flew [/away] …"}])
    said = printed(entry, Status("done", 0, "done"))
    for words in ("1.50 GiB", "1.25 GiB", "1 min 15 s", "A dragon [red]", "flew [/away]", str(paths.logs)):
        assert words in said
    assert "dtrain generate 'my story' --prompt" in said


def test_a_run_without_a_report_still_ends(entry: Entry) -> None:
    assert "dtrain status" in printed(entry, Status("done", 0, "done"))


def test_an_interrupted_run_says_how_to_go_on(entry: Entry) -> None:
    status = Status("interrupted", 75, "stopped on request")
    assert f"dtrain resume {entry.id} --force" in printed(entry, status)
    write_json(paths_of(entry).checkpoints / "step-7" / "manifest.json", {})
    assert f"dtrain resume {entry.id}  go on after step 7" in printed(entry, status)


def test_a_run_on_other_machines_says_what_fetch_brings(entry: Entry) -> None:
    paths = paths_of(entry)
    fetch = f"dtrain fetch {entry.id}"
    assert fetch not in printed(entry, Status("done", 0, "done"))
    write_json(paths.remote, {"machines": []})
    write_json(paths.checkpoint(7) / "manifest.json", {"step": 7})
    assert "bring the checkpoint of step 7 here" in printed(entry, Status("interrupted", 75, "stopped on request"))
    assert fetch in printed(entry, Status("failed", 1, "it failed"))
    assert fetch in printed(entry, Status("done", 0, "done"))
    (paths.output / "model.safetensors").touch()
    assert fetch not in printed(entry, Status("done", 0, "done"))


def test_commands_are_never_broken_over_lines(entry: Entry) -> None:
    assert f"dtrain resume {entry.id} --force" in printed(entry, Status("interrupted", 75, "stopped"), width=30)


ERROR: dict[str, Any] = {"code": 1, "message": "KeyError: 'x'", "traceback": "Traceback (most recent)\nKeyError: 'x'"}


def test_a_bug_is_shown_with_its_traceback(entry: Entry) -> None:
    write_json(paths_of(entry).rank_error(1), ERROR)
    Ending(1, "rank 1: KeyError: 'x'", 3, 1.0, rank=1).write(paths_of(entry))
    said = printed(entry, Status("failed", 1, "rank 1: KeyError: 'x'"))
    assert "Traceback (most recent)" in said
    assert "The run failed: rank 1: KeyError: 'x'" in said


def test_an_error_that_says_what_to_do_needs_no_traceback(entry: Entry) -> None:
    told = ERROR | {"message": "the disk is full", "fix": "free some", "file": "/disk"}
    write_json(paths_of(entry).rank_error(0), told)
    Ending(1, "rank 0: the disk is full", 3, 1.0, rank=0).write(paths_of(entry))
    said = printed(entry, Status("failed", 1, "rank 0: the disk is full"))
    assert "Traceback" not in said
    assert "fix: free some" in said
    error = failure_of(paths_of(entry), Status("failed", 1, "rank 0: the disk is full"))
    assert (error.exit_code, error.file, error.fix) == (1, "/disk", "free some")


def test_a_killed_rank_shows_its_log_and_what_another_said(entry: Entry) -> None:
    paths = paths_of(entry)
    paths.rank_log(1).write_text("my last words\n")
    write_json(paths.rank_error(0), ERROR | {"rank": 0, "traceback": "Connection closed by peer"})
    Ending(1, "rank 1 was killed by SIGKILL", 3, 1.0, rank=1).write(paths)
    said = printed(entry, Status("failed", 1, "rank 1 was killed by SIGKILL"))
    assert said.index("my last words") < said.index("then rank 0 said") < said.index("Connection closed")


def test_a_lost_run(entry: Entry) -> None:
    paths_of(entry).launch_log.write_text("the end of it\n")
    said = printed(entry, Status("lost", None, "its supervisor is gone"))
    assert "the end of it" in said
    assert "its supervisor is gone" in said


def test_runs_as_a_table(entry: Entry) -> None:
    out = io.StringIO()
    reason = "rank 1: " + "long " * 30
    runs = [(entry, Status("failed", 1, reason))]
    print_runs(runs, [Broken(Path("/x.json"), "cut in half")], Console(file=out, width=80), ["unreachable"])
    said = out.getvalue()
    assert reason.strip() in said
    assert "unreadable entry /x.json: cut in half" in said
    assert "unreachable" in said
    terminal = io.StringIO()
    print_runs(runs, [], Console(file=terminal, width=80, force_terminal=True, color_system=None))
    assert all(len(line) <= 80 for line in terminal.getvalue().splitlines())
