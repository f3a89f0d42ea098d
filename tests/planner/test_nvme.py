"""A drive that cannot hold a run is told before any weight is loaded; how much of it a run takes is in the plan."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dtrain.config.load import loads
from dtrain.errors import BadInput, BadInputs
from dtrain.hardware.profiles import resolve_profile
from dtrain.planner import nvme
from dtrain.planner.plan import Plan, make_plan
from dtrain.units import GIB
from tests.planner.layouts import facts

TINY = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"


def plan(*lines: str, profile: str = "a100x8", model: str = TINY) -> Plan:
    loaded = loads("\n".join([f"base_model: {model}", "datasets: [{path: no/data, type: alpaca}]", *lines]))
    return make_plan(loaded, resolve_profile(profile), facts(model))


def test_the_drive_holds_masters_moments_gradients_and_weights() -> None:
    both = plan("offload_optimizer: nvme", "offload_params: nvme", "nvme_path: /local", profile="a100x8x2")
    assert both.choice.zero_stage == 3
    per_node = both.facts.parameters * (4 + 8 + 4 + 2) / 2  # half of the ranks
    assert both.as_json()["nvme_gib"] == pytest.approx(per_node / GIB)
    assert any("/local of each node" in reason for reason in both.reasons)
    in_memory = plan("offload_optimizer: cpu", "offload_params: cpu", "zero_stage: 3", profile="a100x8x2")
    assert "nvme_gib" not in in_memory.as_json()
    assert both.memory.host_memory_gib < in_memory.memory.host_memory_gib
    assert both.time.step_seconds > in_memory.time.step_seconds


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        (["offload_optimizer: nvme", "optimizer: lion_32bit"], "optimizer"),
        (["offload_optimizer: nvme", "zero_stage: 2"], "offload_optimizer"),
        (["offload_optimizer: nvme", "probe: true"], "probe"),
    ],
)
def test_what_a_drive_cannot_stand_beside(lines: list[str], key: str) -> None:
    with pytest.raises(BadInputs) as error:
        plan(*lines, "nvme_path: /local")
    [found] = [one for one in error.value.errors if one.key == key]
    assert found.fix


def test_a_launch_asks_where() -> None:
    loaded = loads(f"base_model: {TINY}\ndatasets: [{{path: no/data, type: alpaca}}]\noffload_params: nvme\n")
    [error] = nvme.missing_path(loaded)
    assert (error.key, error.line) == ("offload_params", 3)
    assert "nvme_path: " in (error.fix or "")


def test_a_deepspeed_file_may_name_the_drive() -> None:
    section = "{device: nvme, nvme_path: /mnt/fast}"
    loaded = loads(
        f"base_model: {TINY}\ndatasets: [{{path: no/data, type: alpaca}}]\n"
        f"deepspeed: {{zero_optimization: {{stage: 3, offload_param: {section}}}}}\n"
    )
    assert (loaded.config.offload_params, loaded.config.nvme_path) == ("nvme", "/mnt/fast")


def takes_direct_io(folder: Path) -> bool:
    """Where the tests' folder is a tmpfs of an older kernel, it does not."""
    file = folder / "direct"
    file.touch()
    try:
        os.close(os.open(file, os.O_RDWR | os.O_DIRECT))
    except OSError:
        return False
    finally:
        file.unlink()
    return True


def test_a_good_folder_is_left_as_it_was(tmp_path: Path) -> None:
    assert nvme.drive_problem(tmp_path / "not" / "there", 1.0) is None or not takes_direct_io(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "is no folder" in (nvme.drive_problem(file / "below", 1.0) or "")
    assert "cannot be written" in (nvme.drive_problem(Path("/proc/here"), 1.0) or "")
    if takes_direct_io(tmp_path):
        assert "free, and the run keeps" in (nvme.drive_problem(tmp_path, 2.0**60) or "")
    else:
        assert "O_DIRECT" in (nvme.drive_problem(tmp_path, 1.0) or "")
    if os.geteuid():
        tmp_path.chmod(0o500)
        assert "cannot be written" in (nvme.drive_problem(tmp_path, 1.0) or "")


def test_a_plan_for_this_machine_looks_at_its_drive() -> None:
    with pytest.raises(BadInput, match="cannot be written") as error:
        plan("zero_stage: 3", "bf16: false", "offload_optimizer: nvme", "nvme_path: /proc/x", profile="cpu")
    assert (error.value.key, error.value.value) == ("nvme_path", "/proc/x")
    assert plan("offload_optimizer: nvme", "nvme_path: /proc/x").fits  # another machine's drive
