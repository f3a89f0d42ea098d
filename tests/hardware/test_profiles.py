"""Profiles by name: the grammar, its slips, this machine, and a fake nvidia-smi that is a real program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dtrain.errors import BadInput
from dtrain.hardware.profiles import profile_names, resolve_profile
from dtrain.hardware.this_machine import listed_gpus


@pytest.mark.parametrize(
    ("said", "name", "gpu", "per_node", "nodes"),
    [
        ("a100x8", "a100x8", "a100-80gb", 8, 1),
        ("A100X8", "a100x8", "a100-80gb", 8, 1),
        ("a100-40gbx8", "a100-40gbx8", "a100-40gb", 8, 1),
        ("h100x8x4", "h100x8x4", "h100", 8, 4),
        ("h100-80gbx1", "h100-80gbx1", "h100", 1, 1),
        ("h100-pciex2", "h100-pciex2", "h100-pcie", 2, 1),
        ("4090", "4090x1", "4090", 1, 1),
        ("rtx4090x1", "rtx4090x1", "4090", 1, 1),
        ("RTX-4090x2", "rtx-4090x2", "4090", 2, 1),
        ("nvidia geforce rtx 3090x1", "nvidia geforce rtx 3090x1", "3090", 1, 1),
        ("mi300xx8", "mi300xx8", "mi300x", 8, 1),
        ("mi300x8", "mi300x8", "mi300x", 8, 1),
        ("mi300xx8x2", "mi300xx8x2", "mi300x", 8, 2),
        ("mi300x", "mi300xx1", "mi300x", 1, 1),
        ("v100-32gbx8", "v100-32gbx8", "v100-32gb", 8, 1),
        ("cpu", "cpu", "cpu", 2, 1),
        ("cpux4", "cpux4", "cpu", 4, 1),
        ("CPUx2x2", "cpux2x2", "cpu", 2, 2),
    ],
)
def test_grammar(said: str, name: str, gpu: str, per_node: int, nodes: int) -> None:
    profile = resolve_profile(said)
    assert (profile.name, profile.gpu.name) == (name, gpu)
    assert (profile.gpus_per_node, profile.nodes, profile.gpus) == (per_node, nodes, per_node * nodes)
    assert profile.is_cpu is (gpu == "cpu")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("", "unknown profile"),
        ("foo", "unknown profile"),
        ("x8", "unknown profile"),
        ("a100-60gbx8", "no a100 has that memory"),
        ("a100x0", "0 per node"),
        ("a100x8x0", "0 nodes"),
        ("a100x73", "73 per node"),
        ("a100x8x5000", "5000 nodes"),
        ("a100x" + "9" * 5000, "per node"),
        ("a100xx8", "no count"),
        ("a100x", "no count"),
        ("a100x8x4x2", "no count"),
        ("h100x-1", "no count"),
        ("h100x٣", "no count"),
        ("cpux0", "0 per node"),
        ("p100x1", "not supported"),
        ("nowhere.yaml", "no such profile file"),
    ],
)
def test_slips_are_told(said: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        resolve_profile(said)
    assert caught.value.fix


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(BadInput) as caught:
        resolve_profile("a10gg")
    assert "a10g" in (caught.value.fix or "")
    with pytest.raises(BadInput) as caught:
        resolve_profile("a100-60gbx8")
    assert caught.value.allowed == "a100-40gb, a100-80gb"


def test_every_listed_name_resolves_to_itself() -> None:
    names = profile_names()
    assert "a100x8" in names
    assert "cpu" in names
    assert not any("p100" in name for name in names)
    assert [resolve_profile(name).name for name in names] == names


def test_usual_machines() -> None:
    a100 = resolve_profile("a100x8")
    assert (a100.host_memory_gib, a100.network_gbit_per_s) == (1152, 400)
    assert "p4de" in a100.surroundings_source
    assert resolve_profile("h100x8").host_memory_gib == 2048
    assert resolve_profile("4090x1").host_memory_gib == 64


def test_bridges_join_pairs_only() -> None:
    assert resolve_profile("3090x1").notes == ()
    pair, four = resolve_profile("3090x2"), resolve_profile("3090x4")
    assert pair.gpu.gpu_link_gb_per_s == 56
    assert "bridge" in pair.notes[0]
    assert four.gpu.gpu_link_gb_per_s == 0
    assert "pairs" in four.notes[0]


def test_cpu_ranks_share_this_machine() -> None:
    two, four = resolve_profile("cpu"), resolve_profile("cpux4")
    assert two.gpu.memory_gib == pytest.approx(two.host_memory_gib / 2)
    assert four.gpu.memory_gib == pytest.approx(two.host_memory_gib / 4)
    assert "estimate" in two.notes[0]
    assert two.gpu.has_bf16


def smi(folder: Path, *lines: str, code: int = 0) -> str:
    """A program called nvidia-smi that answers with these lines; the PATH to find it with."""
    program = folder / "nvidia-smi"
    answer = "\n".join(lines)
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\nexit {code}\n")
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def one(index: int, name: str = "NVIDIA A100-SXM4-80GB") -> str:
    return f"{index}, GPU-{index}abc, {name}, 81920"


@pytest.fixture(autouse=True)
def _no_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_auto_without_gpus_is_the_cpu_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", smi(tmp_path, "NVIDIA-SMI has failed", code=9))
    profile = resolve_profile("auto")
    assert (profile.name, profile.gpus) == ("cpu", 2)
    assert "no GPU" in profile.notes[0]


def test_auto_with_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", smi(tmp_path, *map(one, range(4))))
    profile = resolve_profile("auto")
    assert (profile.name, profile.gpu.name, profile.gpus) == ("a100x4", "a100-80gb", 4)
    assert profile.host_memory_gib == pytest.approx(resolve_profile("cpu").host_memory_gib)
    assert resolve_profile(profile.name).gpus == 4


@pytest.mark.parametrize(
    ("visible", "seen"), [("0,2", ["0", "2"]), ("GPU-1", ["1"]), ("", []), ("3,9,1", ["3"]), ("-1", [])]
)
def test_auto_honours_cuda_visible_devices(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str, seen: list[str]
) -> None:
    monkeypatch.setenv("PATH", smi(tmp_path, *map(one, range(4))))
    assert [gpu.index for gpu in listed_gpus({"CUDA_VISIBLE_DEVICES": visible})] == seen


def test_auto_with_different_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", smi(tmp_path, one(0, "Tesla T4"), one(1), one(2)))
    with pytest.raises(BadInput) as caught:
        resolve_profile("auto")
    assert "CUDA_VISIBLE_DEVICES=1,2" in (caught.value.fix or "")


def test_auto_with_a_card_that_is_not_in_the_catalogue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", smi(tmp_path, one(0, "NVIDIA RTX 9999 Ultra")))
    with pytest.raises(BadInput, match="not in the catalogue") as caught:
        resolve_profile("auto")
    assert "catalogue: " in (caught.value.fix or "")


def test_auto_with_a_card_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", smi(tmp_path, one(0, "Tesla P100-PCIE-16GB")))
    with pytest.raises(BadInput, match="not supported"):
        resolve_profile("auto")


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; from dtrain.hardware.profiles import resolve_profile; from dtrain.models.hub import load_facts; "
        "resolve_profile('auto'); load_facts('gpt2'); "
        "assert not {'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
