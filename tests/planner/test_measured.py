"""A run beside its plan: like with like, kept on the machine, and said when a later plan uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dtrain import paths
from dtrain.cli.main import cli
from dtrain.config.load import loads
from dtrain.errors import BadInput
from dtrain.files import write_json
from dtrain.hardware.profiles import resolve_profile
from dtrain.launch import registry
from dtrain.launch.draft import planned
from dtrain.launch.registry import Entry
from dtrain.paths import RunPaths
from dtrain.planner.measured import NO_BIAS, Bias, compared, keep, kept_rows, own_bias
from dtrain.planner.plan import Plan, make_plan, versions
from tests.planner.layouts import facts

TINY = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DTRAIN_HOME", str(tmp_path / "home"))


def plan(profile: str = "a100x8", bias: Bias = NO_BIAS) -> Plan:
    loaded = loads(f"base_model: {TINY}\ndatasets: [{{path: no/data, type: alpaca}}]\nmax_steps: 100\n")
    return make_plan(loaded, resolve_profile(profile), facts(TINY), bias=bias)


def report(made: dict[str, Any], memory: float = 1.0, time: float = 1.0, **changes: Any) -> dict[str, Any]:
    """As if the run had needed `memory` and `time` times what was planned, on full windows."""
    choice = made["choice"]
    full = choice["global_batch_size"] * choice["sequence_len"]
    measured = {
        "peak_allocated_gib": memory * made["memory_gib"]["peak_allocated"],
        "peak_reserved_gib": memory * made["memory_gib"]["peak_reserved"],
        "step_seconds": time * made["throughput"]["step_seconds"], "steps": 100, "tokens_seen": 100 * full,
        "longest_tokens": choice["micro_batch_size"] * choice["sequence_len"],
    }  # fmt: skip
    return {"measured": measured | changes}


def test_errors_are_planned_over_measured() -> None:
    made = plan().as_json()
    row = compared(made, report(made, memory=1.25, time=0.5), "one")
    assert row["errors"]["peak_allocated"] == pytest.approx(-0.2)
    assert row["errors"]["step_seconds"] == pytest.approx(1.0)
    assert row["notes"] == []


def test_steps_between_mean_and_full_are_compared_at_their_own_tokens() -> None:
    made = plan().as_json()
    schedule, full = made["schedule"], made["throughput"]["step_seconds"]
    tokens = schedule["tokens"] * 1.5  # half way from half windows to full ones
    row = compared(made, report(made, tokens_seen=tokens), "one")
    assert schedule["step_seconds"] < row["planned"]["step_seconds"] < full
    assert row["planned"]["step_seconds"] == pytest.approx((schedule["step_seconds"] + full) / 2, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"longest_tokens": 10}, "peak_allocated", "the longest had 10"),
        ({"tokens_seen": 100}, "step_seconds", "their time was not compared"),
        ({"steps": 2}, "step_seconds", "fewer than"),
        ({"peak_allocated_gib": 0.0}, "peak_allocated", "not measured"),
    ],
)
def test_what_is_not_alike_is_not_compared(changes: dict[str, Any], error: str, words: str) -> None:
    made = plan().as_json()
    row = compared(made, report(made, **changes), "one")
    assert row["errors"][error] is None
    assert any(words in note for note in row["notes"])


def test_a_run_is_kept_once_and_a_broken_line_is_passed_over() -> None:
    made = plan().as_json()
    for memory in (1.1, 1.2):
        keep(compared(made, report(made, memory=memory), "one"))
    paths.measured().write_text(paths.measured().read_text() + "{half a li")
    keep(compared(made, report(made), "two"))
    assert [row["run"] for row in kept_rows()] == ["one", "two"]
    assert kept_rows()[0]["errors"]["peak_allocated"] == pytest.approx(1 / 1.2 - 1)


def test_bias_is_the_median_and_comes_out_of_the_next_plan() -> None:
    profile, before = resolve_profile("a100x8"), plan()
    made = before.as_json()
    for number, memory in enumerate((1.02, 1.05, 1.2)):
        keep(compared(made, report(made, memory=memory, time=2.0), str(number)))
    bias = own_bias(profile, versions())
    assert bias.memory == pytest.approx(1.05)
    assert bias.time == pytest.approx(2.0)
    assert bias.runs == 3
    after = plan(bias=bias)
    assert after.memory.peak_allocated == pytest.approx(1.05 * before.memory.peak_allocated)
    assert sum(after.memory.terms.values()) == pytest.approx(after.memory.peak_allocated)
    assert after.time.step_seconds == pytest.approx(2 * before.time.step_seconds)
    assert sum(after.time.parts.values()) == pytest.approx(after.time.step_seconds)
    assert any("3 measured runs here" in reason and "--no-bias" in reason for reason in after.reasons)


def test_a_biased_plan_that_was_right_keeps_its_bias() -> None:
    bias = Bias(memory=1.1, time=2.0, runs=1, words="bias")
    made = plan(bias=bias).as_json()
    row = compared(made, report(made), "one")
    assert row["errors"]["peak_allocated"] == pytest.approx(1 / 1.1 - 1)
    assert row["errors"]["step_seconds"] == pytest.approx(1 / 2 - 1)


def test_other_cards_and_versions_have_no_say() -> None:
    made = plan().as_json()
    keep(compared(made, report(made, memory=1.1), "one"))
    assert own_bias(resolve_profile("a100x4"), versions()) == NO_BIAS
    assert own_bias(resolve_profile("h100x8"), versions()) == NO_BIAS
    assert own_bias(resolve_profile("a100x8"), {**versions(), "torch": "1.0"}) == NO_BIAS


def test_what_is_too_much_for_a_bias_is_told_and_not_used() -> None:
    made = plan().as_json()
    keep(compared(made, report(made, memory=3.0), "one"))
    bias = own_bias(resolve_profile("a100x8"), versions())
    assert bias.memory == 1.0
    assert "too much to be a bias" in bias.words


def test_the_row_names_no_path() -> None:
    made = plan().as_json()
    assert "/" not in json.dumps(compared(made, report(made), "one"))


# --- on the command line ------------------------------------------------------------------------------------------


def a_run(output: Path) -> RunPaths:
    """A run that is known here; it has a plan and no report yet."""
    run = RunPaths(output)
    write_json(run.plan, plan().as_json())
    registry.write(Entry("20261123-000000-aaaa", "mine", str(output), "local", "a100x8", 1.0))
    return run


def test_verify_prints_the_row(tmp_path: Path) -> None:
    run = a_run(tmp_path / "out")
    write_json(run.report, report(plan().as_json(), memory=1.25))
    done = CliRunner().invoke(cli, ["plan", "--verify", "mine", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["errors"]["peak_allocated"] == pytest.approx(-0.2)
    words = CliRunner().invoke(cli, ["plan", "--verify", "mine"])
    assert "-20.0%" in words.stdout


def test_a_run_without_a_report_cannot_be_verified(tmp_path: Path) -> None:
    a_run(tmp_path / "out")
    assert isinstance(CliRunner().invoke(cli, ["plan", "--verify", "mine"]).exception, BadInput)


def test_plan_says_its_bias_and_leaves_it_out_on_request() -> None:
    made = plan().as_json()
    keep(compared(made, report(made, memory=1.1), "one"))
    arguments = ["plan", "configs/storyteller.yaml", "--profile", "a100x8", "--json"]
    biased, plain = (json.loads(CliRunner().invoke(cli, [*arguments, *more]).stdout) for more in ([], ["--no-bias"]))
    assert biased["bias"]["memory"] == pytest.approx(1.1)
    assert any(reason.startswith("bias: 1 measured run here") for reason in biased["reasons"])
    assert biased["memory_gib"]["peak_allocated"] == pytest.approx(1.1 * plain["memory_gib"]["peak_allocated"])
    assert plain["bias"]["runs"] == 0


def test_launch_plans_with_the_bias_and_leaves_it_out_on_request() -> None:
    file = Path("configs/storyteller-tiny.yaml")
    plain = planned(file, [], "cpu", with_bias=False).plan
    made = plain.as_json()
    keep(compared(made, report(made, memory=1.1), "one"))
    biased = planned(file, [], "cpu").plan
    assert biased.memory.peak_allocated == pytest.approx(1.1 * plain.memory.peak_allocated)
    assert any("--no-bias" in reason for reason in biased.reasons)
    assert planned(file, [], "cpu", with_bias=False).plan.bias == NO_BIAS


def test_launch_counts_the_price_of_the_provider_it_rents_from() -> None:
    """`dtrain plan` asks the whole table; what --on names is what will be paid."""
    file = Path("configs/storyteller.yaml")
    costs = {on: planned(file, [], "a100x8", on).plan.cost for on in ("local", "aws")}
    assert costs["aws"] is not None
    assert costs["local"] is not None
    assert (costs["aws"].provider, costs["aws"].usd_per_hour) == ("aws", 27.4471)
    assert costs["local"].usd_per_hour < costs["aws"].usd_per_hour
