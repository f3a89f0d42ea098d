"""A run planned anew in its folder: another machine, other flags, what a shortage taught. Without torch."""

from __future__ import annotations

import json
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from dtrain.errors import BadInput
from dtrain.launch import nodes, shortage
from dtrain.launch.create import create
from dtrain.launch.draft import draft, planned
from dtrain.launch.ending import FAILED, Ending
from dtrain.launch.layout import planned_again
from dtrain.paths import RunPaths
from dtrain.planner.replan import Shortage

BATCH = 64


@pytest.fixture
def paths(project: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    """A run that was created and has not begun."""
    monkeypatch.chdir(project)
    sets = ("micro_batch_size=null", f"global_batch_size={BATCH}", "zero_stage=2")
    made = draft(planned(project / "tiny.yaml", sets, "cpu"), "local", None)
    return create(made.folder, made.files)


def saved(paths: RunPaths) -> None:
    paths.checkpoint(3).mkdir(parents=True)
    (paths.checkpoint(3) / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    ("profile", "sets"), [("cpux4", ()), ("cpux1", ("zero_stage=3",)), (None, ("micro_batch_size=1",))]
)
def test_the_global_batch_stays(paths: RunPaths, profile: str | None, sets: tuple[str, ...]) -> None:
    saved(paths)
    _, plan = planned_again(paths, sets, profile)
    assert plan.choice.global_batch_size == BATCH
    assert plan.profile.name == (profile or "cpu")
    assert plan.choice.zero_stage == (3 if sets == ("zero_stage=3",) else 2)
    ranks = plan.profile.gpus
    assert plan.choice.micro_batch_size * plan.choice.gradient_accumulation_steps * ranks == BATCH


@pytest.mark.parametrize("flag", ["sequence_len=64", "seed=7", "global_batch_size=32", "shuffle=false"])
def test_rows_of_later_steps_cannot_change(paths: RunPaths, flag: str) -> None:
    planned_again(paths, (flag,), None)  # nothing is saved yet: nothing is lost
    saved(paths)
    with pytest.raises(BadInput, match="would see other rows") as caught:
        planned_again(paths, (flag,), None)
    assert caught.value.key == flag.partition("=")[0]


def test_a_shortage_is_told_with_a_command_that_gives_the_layout_it_names(paths: RunPaths) -> None:
    peak = json.loads(paths.plan.read_text())["memory_gib"]["peak_allocated"]
    short = {"had_gib": 0.5 * peak, "asked_gib": 0.1 * peak, "place": "backward", "step": 4, "kind": "device"}
    paths.logs.mkdir()
    paths.rank_error(1).write_text(json.dumps({"message": "out of memory", "shortage": short}))
    ending, again = shortage.after_shortage(paths, Ending(FAILED, "rank 1: out of memory", 4, 1.0, 1))
    assert not again
    assert "; a layout that would fit: " in ending.reason
    fix = json.loads(paths.rank_error(1).read_text())["fix"]
    assert fix.startswith("dtrain resume ")
    _, plan = planned_again(paths, _flags(fix), None)
    found = shortage.way_on(paths, Shortage.from_json(short))
    assert found is not None
    assert plan.choice == found.plan.choice
    assert plan.memory.peak_allocated < 0.5 * peak


def _flags(fix: str) -> list[str]:
    words = shlex.split(fix.partition("  (")[0])
    return [after for before, after in pairwise(words) if before == "--set"]


def test_replanned_by_itself_keeps_the_plan_before(paths: RunPaths) -> None:
    before = paths.plan.read_text()
    paths.config.write_text(paths.config.read_text().replace("on_oom: stop", "on_oom: replan"))
    peak = json.loads(before)["memory_gib"]["peak_allocated"]
    paths.logs.mkdir()
    told = {
        "message": "out of memory",
        "shortage": {"had_gib": 0.5 * peak, "asked_gib": 0, "place": "x", "step": 0, "kind": "device"},
    }
    paths.rank_error(0).write_text(json.dumps(told))
    _, again = shortage.after_shortage(paths, Ending(FAILED, "rank 0: out of memory", 0, 1.0, 0))
    assert again
    assert (paths.past / "1" / "plan.json").read_text() == before
    assert json.loads(paths.plan.read_text())["memory_gib"]["peak_allocated"] < 0.5 * peak
    assert not paths.rank_error(0).exists()


@pytest.mark.parametrize("kind", ["device", "host"])
def test_nodes_of_a_job_go_on_with_the_next_layout_where_they_can(
    paths: RunPaths, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths.config.write_text(paths.config.read_text().replace("on_oom: stop", "on_oom: replan"))
    before = json.loads(paths.plan.read_text())["memory_gib"]["peak_allocated"]
    short = {"had_gib": 0.5 * before, "asked_gib": 0, "place": "training", "step": 0, "kind": kind}
    paths.logs.mkdir()
    paths.rank_error(1).write_text(json.dumps({"message": "out of memory", "shortage": short}))
    for node in (0, 1):
        Ending(FAILED, "rank 1: out of memory", 0, 1.0, 1).write_to(paths.node(node).ending)
    cannot = nodes.end(paths, ["a", "b"], nodes.Verdict())
    assert isinstance(cannot, Ending)
    assert "; a layout that would fit: " in cannot.reason
    assert nodes.main(["end", str(paths.output), "a", "b", "--restarts", "0"]) == 0
    assert capsys.readouterr().out == "restart\n"  # the batch script reads nothing else
    assert json.loads(paths.plan.read_text())["memory_gib"]["peak_allocated"] < before


def test_any_other_failure_is_left_as_it_is(paths: RunPaths) -> None:
    ending = Ending(FAILED, "rank 0: RuntimeError", 0, 1.0, 0)
    assert shortage.after_shortage(paths, ending) == (ending, False)
