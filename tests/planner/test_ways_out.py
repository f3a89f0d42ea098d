"""Nothing fits: each way out is a command, and each command is accepted; what fits is the fastest that does."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from dtrain.config.load import load, loads
from dtrain.hardware.profiles import resolve_profile
from dtrain.planner.choose import SAME_SPEED, search
from dtrain.planner.nearest import ways_out
from dtrain.planner.pins import space_of
from dtrain.planner.plan import make_plan
from tests.planner.layouts import facts

LLAMA_8B, LLAMA_70B, LLAMA_405B = (f"meta-llama/Llama-3.1-{size}" for size in ("8B", "70B", "405B"))
HEAD = "datasets: [{path: no/data, type: alpaca}]\nsequence_len: 4096\n"


@pytest.mark.parametrize(
    ("model", "batch", "profile"),
    [(LLAMA_405B, 64, "h100x8"), (LLAMA_70B, 256, "a100x8")],
    ids=["only other machines help", "only the host is too small"],
)
def test_three_commands_each_of_which_is_accepted(model: str, batch: int, profile: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"base_model: {model}\n{HEAD}global_batch_size: {batch}\n")
    loaded = load(file)
    made = make_plan(loaded, resolve_profile(profile), facts(model))
    assert not made.accepted
    ways = ways_out(made, loaded, facts(model))
    assert len({way.command for way in ways}) == 3
    for way in ways:
        _, _, path, _, name, *sets = shlex.split(way.command)
        again = make_plan(load(Path(path), sets[1::2]), resolve_profile(name), facts(model))
        assert again.accepted, way


def test_a_machine_of_ones_own_is_named_by_its_file(tmp_path: Path) -> None:
    """And is as fast as the card whose figures fill it."""
    machine, file = tmp_path / "mine.yaml", tmp_path / "run.yaml"
    machine.write_text("name: under my desk\ngpu: two of them\ngpus_per_node: 2\ncatalogue: 4090\n")
    file.write_text(f"base_model: {LLAMA_8B}\n{HEAD}")
    loaded, profile = load(file), resolve_profile(str(machine))
    made = make_plan(loaded, profile, facts(LLAMA_8B))
    usual = make_plan(loaded, resolve_profile("4090x2"), facts(LLAMA_8B))
    assert made.time.step_seconds == pytest.approx(usual.time.step_seconds)
    assert not made.accepted
    named = [shlex.split(way.command)[4] for way in ways_out(made, loaded, facts(LLAMA_8B))]
    assert len(named) == 3
    assert named.count(str(machine)) == 2  # adapters; then other machines


@pytest.mark.parametrize(("model", "profile"), [(LLAMA_8B, "a100x8"), (LLAMA_8B, "l40sx4"), (LLAMA_70B, "h100x8x8")])
def test_nothing_within_the_headroom_is_faster(model: str, profile: str) -> None:
    loaded, machine = loads(f"base_model: {model}\n{HEAD}global_batch_size: 256"), resolve_profile(profile)
    found = search(loaded, facts(model), machine, space_of(loaded, machine, facts(model)))
    able = [one.seconds_per_sample for one in found.candidates if one.within_headroom]
    assert found.best.within_headroom
    assert found.best.seconds_per_sample <= (1 + SAME_SPEED) * min(able)
