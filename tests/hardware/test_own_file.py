"""The user's own machine as a YAML file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtrain.errors import BadInput, BadInputs
from dtrain.hardware.own_file import KEYS
from dtrain.hardware.profiles import Profile, resolve_profile

COMPLETE = """\
name: cellar
gpu: Tensor Thing 9
gpus_per_node: 4
nodes: 2
memory_gib: 47.5
tflops_bf16: 3.0e2
measured_tflops_bf16: 210
memory_gb_per_s: 900
gpu_link_gb_per_s: 0
pcie_gb_per_s: 31
network_gbit_per_s: 100
host_memory_gib: 512
usd_per_hour: 3.5
"""


def read(folder: Path, text: str) -> Profile:
    path = folder / "machine.yaml"
    path.write_text(text)
    return resolve_profile(str(path))


def test_a_complete_file_needs_no_catalogue(tmp_path: Path) -> None:
    profile = read(tmp_path, COMPLETE)
    assert (profile.name, profile.gpus_per_node, profile.nodes, profile.gpus) == ("cellar", 4, 2, 8)
    assert (profile.host_memory_gib, profile.network_gbit_per_s, profile.usd_per_hour) == (512, 100, 3.5)
    gpu = profile.gpu
    assert (gpu.name, gpu.memory_gib, gpu.tflops["bf16"], gpu.measured_tflops_bf16) == (
        "Tensor Thing 9",
        47.5,
        300,
        210,
    )
    assert (gpu.memory_gb_per_s, gpu.gpu_link_gb_per_s, gpu.pcie_gb_per_s) == (900, 0, 31)
    assert gpu.sources["memory_gib"].endswith("machine.yaml")


def test_gaps_are_filled_from_the_catalogue_and_said(tmp_path: Path) -> None:
    profile = read(tmp_path, "gpu: RTX 6000 Ada\ngpus_per_node: 4\nmemory_gib: 47.5\ncatalogue: l40s\n")
    assert profile.gpu.memory_gib == 47.5
    assert profile.gpu.memory_gb_per_s == 864
    assert profile.host_memory_gib == 384
    assert profile.nodes == 1
    assert "l40s" in profile.notes[0]
    assert "memory_gb_per_s" in profile.notes[0]
    assert "memory_gib," not in profile.notes[0].replace("host_memory_gib", "")


def test_a_gpu_of_the_catalogue_fills_its_own_gaps(tmp_path: Path) -> None:
    profile = read(tmp_path, "gpu: a100\ngpus_per_node: 2\nhost_memory_gib: 900\n")
    assert (profile.gpu.name, profile.gpu.memory_gib, profile.host_memory_gib) == ("a100-80gb", 79.15, 900)


def test_the_other_rates_follow_the_one_that_is_said(tmp_path: Path) -> None:
    gpu = read(tmp_path, "gpus_per_node: 1\ncatalogue: a100\ntflops_bf16: 156\n").gpu
    assert gpu.tflops == {"bf16": 156, "fp16": 156, "tf32": 78, "fp32": 9.75, "fp8": None}
    assert gpu.measured_tflops_bf16 == pytest.approx(271.2 / 2)


def test_a_card_without_bf16_stays_without(tmp_path: Path) -> None:
    gpu = read(tmp_path, "gpus_per_node: 1\ncatalogue: v100\ntflops_bf16: 100\n").gpu
    assert not gpu.has_bf16
    assert gpu.tflops["fp16"] == pytest.approx(100)


def test_all_errors_with_their_lines(tmp_path: Path) -> None:
    text = "gpus_per_nodes: 4\nmemory_gib: -1\nnodes: 0\nnodes: 2\ntflops_bf16: .nan\npcie_gb_per_s: [1]\ngpu: {}\n"
    with pytest.raises(BadInputs) as caught:
        read(tmp_path, text)
    told = [(error.line, error.key) for error in caught.value.errors]
    keys = ["gpus_per_nodes", "memory_gib", "nodes", "nodes", "tflops_bf16", "pcie_gb_per_s", "gpu"]
    assert told == list(enumerate(keys, start=1))
    assert caught.value.errors[0].fix == "did you mean `gpus_per_node`?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "key: value"),
        ("- a\n", "key: value"),
        ("a: b: c\n", "no YAML"),
        ("gpu: a100\n", "gpus_per_node"),
        ("gpus_per_node: 4\nmemory_gib: 40\n", "figures are missing"),
        ("gpus_per_node: 4\ncatalogue: a200\n", "no such card"),
        ("gpus_per_node: 4\ncatalogue: p100\n", "not supported"),
        ("gpus_per_node: 1.5\ncatalogue: a100\n", "wrong value"),
        ("gpus_per_node: 100000\ncatalogue: a100\n", "wrong value"),
        (COMPLETE.replace("network_gbit_per_s: 100\n", ""), "network_gbit_per_s"),
    ],
)
def test_one_clear_message(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path, text)
    assert message in str(caught.value)
    assert "machine.yaml" in str(caught.value)


def test_a_missing_figure_names_the_nearest_card(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path, "gpus_per_node: 4\nmemory_gib: 40\n")
    assert "catalogue: a100-40gb" in (caught.value.fix or "")


VALUES = st.one_of(st.text(max_size=12), st.integers().map(str), st.floats().map(str), st.just("null"), st.just("[1]"))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.sampled_from([*KEYS, "other"]), VALUES))
def test_nonsense_is_an_error_and_never_a_crash(tmp_path: Path, values: dict[str, str]) -> None:
    text = "".join(f"{key}: {value}\n" for key, value in values.items())
    (tmp_path / "machine.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        profile = resolve_profile(str(tmp_path / "machine.yaml"))
    except BadInput:
        return
    assert profile.gpus >= 1
    assert profile.gpu.memory_gib > 0
