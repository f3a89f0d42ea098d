"""`dtrain rent`: the ranking by hand-made prices, the limits, what a person mistypes, and the command itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dtrain.cli.rent import command
from dtrain.config.load import loads
from dtrain.config.origins import Loaded
from dtrain.errors import BadInput
from dtrain.hardware.prices import Price, prices
from dtrain.planner.rent import Limits, Option, Rent, hours_of, profiles_to_try, rent, repriced, shortfall
from dtrain.show.rent import chosen_rows
from tests.planner.layouts import facts

TEXT = """\
base_model: meta-llama/Llama-3.1-8B
datasets: [{path: nowhere/data, type: completion}]
sequence_len: 4096
sample_packing: true
global_batch_size: 64
max_steps: 200
"""


def price(provider: str, gpu: str, gpus: int, usd: float, **more: object) -> Price:
    told = {"machine": f"{gpus} of {gpu}", "kind": "on-demand", "priced_on": "2026-01-01", "source": "made up"}
    return Price(provider=provider, gpu=gpu, gpus=gpus, usd_per_hour=usd, **{**told, **more})  # type: ignore[arg-type]


TABLE = (
    price("slow", "a100-80gb", 8, 10.0),
    price("fast", "h100", 8, 30.0),
    price("dear", "h100", 8, 90.0),
    price("small", "t4", 1, 0.1),
)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return loads(TEXT)


def told(loaded: Loaded, limits: Limits = Limits(), table: tuple[Price, ...] = TABLE) -> Rent:  # noqa: B008
    return rent(loaded, facts("meta-llama/Llama-3.1-8B"), limits, table)


def one_machine(found: Rent) -> dict[str, Option]:
    return {option.offer.provider: option for option in found.options if option.plan.profile.nodes == 1}


def test_cheapest_first_and_the_front_is_what_nothing_beats(loaded: Loaded) -> None:
    found = told(loaded)
    assert [option.usd for option in found.options] == sorted(option.usd for option in found.options)
    for option in found.options:
        beaten = any(
            other.usd <= option.usd
            and other.hours <= option.hours
            and (other.usd, other.hours) != (option.usd, option.hours)
            for other in found.options
        )
        assert option.on_front is not beaten


def test_dollars_are_billed_hours_times_the_price(loaded: Loaded) -> None:
    slow, fast = (one_machine(told(loaded))[name] for name in ("slow", "fast"))
    assert slow.usd == pytest.approx(10.0 * slow.hours)
    assert fast.hours < slow.hours
    assert slow.hours > slow.plan.run.hours
    dear = one_machine(told(loaded))["dear"]
    assert dear.usd == pytest.approx(3 * fast.usd)
    assert not dear.on_front


def test_what_cannot_run_it_is_said_with_the_reason(loaded: Loaded) -> None:
    found = told(loaded)
    reasons = {one.profile: one.reason for one in found.unable}
    assert "GiB" in reasons["t4x1"]
    assert "small" not in one_machine(found)


def test_whole_machines_are_joined_and_pay_for_each(loaded: Loaded) -> None:
    found = [option for option in told(loaded).options if option.offer.provider == "fast"]
    by_nodes = {option.plan.profile.nodes: option for option in found}
    assert by_nodes[4].offer.usd_per_hour == 120.0
    assert by_nodes[4].plan.run.hours < by_nodes[1].plan.run.hours
    assert set(by_nodes) <= {1, 2, 4, 8}


def test_cards_sold_singly_are_offered_in_every_count() -> None:
    table = (price("pods", "h100", 1, 2.0, up_to=8, kind="marketplace"),)
    assert [profile.name for profile in profiles_to_try(table)] == ["h100x1", "h100x2", "h100x4", "h100x8"]


def test_a_machine_larger_than_the_profile_is_not_offered_twice(loaded: Loaded) -> None:
    table = (price("whole", "a100-80gb", 8, 10.0), price("half", "a100-80gb", 4, 6.0))
    found = told(loaded, table=table)
    assert all(option.offer.gpus == option.plan.profile.gpus for option in found.options)


def test_limits_mark_and_the_front_is_within_them(loaded: Loaded) -> None:
    free = told(loaded)
    middle = sorted(option.hours for option in free.options)[len(free.options) // 2]
    found = told(loaded, Limits(within_hours=middle))
    assert 0 < len(found.allowed) < len(found.options)
    assert all(option.hours <= middle for option in found.allowed)
    assert all(option.within_limits for option in found.options if option.on_front)
    assert shortfall(found) is None


def test_nothing_within_the_limits_names_the_nearest(loaded: Loaded) -> None:
    error = shortfall(told(loaded, Limits(max_cost_usd=0.01)))
    assert error is not None
    assert error.exit_code == 3
    assert "--max-cost" in (error.fix or "")


def test_nothing_that_fits_at_all(loaded: Loaded) -> None:
    error = shortfall(told(loaded, table=(price("small", "t4", 1, 0.1),)))
    assert error is not None
    assert "no machine" in error.message


@pytest.mark.parametrize(("said", "hours"), [("24h", 24), ("90m", 1.5), ("2d", 48), ("3", 3), (" 1.5 H", 1.5)])
def test_durations(said: str, hours: float) -> None:
    assert hours_of(said) == hours


@pytest.mark.parametrize("said", ["", "soon", "-3h", "0h", "24hours", "h"])
def test_no_duration(said: str) -> None:
    with pytest.raises(BadInput) as error:
        hours_of(said)
    assert error.value.fix == "--within 24h"


def test_a_price_that_is_known_better() -> None:
    table = repriced(["fast:8 of h100=12.5"], TABLE)
    assert [one.usd_per_hour for one in table] == [10.0, 12.5, 90.0, 0.1]
    assert table[1].source == "--price"


@pytest.mark.parametrize(
    "said", ["fast:8 of h100", "fast:8 of h100=", "fast:8 of h100=cheap", "fast:8 of h100=-1", "nan"]
)
def test_no_price(said: str) -> None:
    with pytest.raises(BadInput):
        repriced([said], TABLE)


def test_an_unknown_machine_names_the_nearest() -> None:
    with pytest.raises(BadInput) as error:
        repriced(["fast:8 of h1=20"], TABLE)
    assert "fast:8 of h100=20" in (error.value.fix or "")


def test_the_example_of_the_help_is_a_machine_of_the_table() -> None:
    (example,) = re.findall(r'--price "(.+?)"', command.help or "")
    assert repriced([example]) != prices()


def test_the_whole_market_is_tried(loaded: Loaded) -> None:
    assert len(told(loaded, table=prices()).options) > 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    return path


def dtrain(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dtrain", *words], capture_output=True, text=True, check=False)


def test_the_command_prints_one_json_document(file: Path) -> None:
    done = dtrain("rent", str(file), "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert document["schema_version"] == 1
    first = document["options"][0]
    assert first["usd"] == min(option["usd"] for option in document["options"])
    assert first["usd"] == pytest.approx(first["hours"] * first["usd_per_hour"], abs=0.01)
    assert first["pareto"]
    assert {"priced_on", "source", "choice", "peak_gib", "provider", "machine", "profile"} <= set(first)


def test_the_command_tells_limits_that_nothing_meets(file: Path) -> None:
    done = dtrain("rent", str(file), "--json", "--within", "1m")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["code"] == 3
    words = dtrain("rent", str(file), "--within", "1m")
    assert words.returncode == 3
    assert "nothing is within the limits" in words.stderr


def test_the_command_in_words(file: Path) -> None:
    whole = next(price for price in prices() if price.gpus == 8 and price.gpu == "h100")
    done = dtrain("rent", str(file), "--price", f"{whole.provider}:{whole.machine}=1")
    assert done.returncode == 0
    assert "◆" in done.stdout
    assert "as told" in done.stdout


def test_a_typo_is_bad_input(file: Path) -> None:
    assert dtrain("rent", str(file), "--within", "soon").returncode == 2
    assert dtrain("rent", str(file), "--max-cost", "much").returncode == 2
    assert dtrain("rent", str(file.with_name("no.yaml"))).returncode == 2


def test_the_table_shows_the_whole_front(loaded: Loaded) -> None:
    options = told(loaded, table=prices()).options
    shown = chosen_rows(options, most=3)
    assert [option for option in shown if option.on_front] == [option for option in options if option.on_front]
    assert len(chosen_rows(options)) < len(options)


def test_colab_is_offered_by_units_and_the_months_price_is_said() -> None:
    text = "base_model: Qwen/Qwen3-0.6B\ndatasets: [{path: no/data, type: alpaca}]"
    told = rent(loads(text), facts("Qwen/Qwen3-0.6B"), Limits())
    paid = {option.plan.profile.name for option in told.options if option.offer.kind == "notebook"}
    assert paid == {"t4x1", "l4x1", "a100-40gbx1"}
    assert any("$9.99 for 100" in warning and "$49.99" in warning for warning in told.warnings)
    assert next(option for option in told.options if option.offer.kind == "notebook").usd > 0
