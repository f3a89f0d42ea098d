"""The parts of a launch over SSH that need no host: options, the bundle, the wheel, the gate, the probe."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from dataclasses import asdict
from importlib.metadata import distribution
from pathlib import Path

import pytest
from dtrain_launchers.ssh import SshLauncher, _refuse_other_drivers, _refuse_other_gpus
from dtrain_launchers.ssh_options import read_options

from dtrain.errors import BadInput, PartMissing
from dtrain.launch import bundle, bundle_wheel, gate, probe
from dtrain.launch.api import Job
from dtrain.launch.machine import Seen
from dtrain.launch.tunnel import Host

A100 = {"name": "NVIDIA A100", "memory_mib": "81920", "driver": "570.1"}
H100 = {"name": "NVIDIA H100", "memory_mib": "81559", "driver": "570.1"}


def seen(*gpus: dict[str, str]) -> Seen:
    return Seen("/root/.dtrain", "/root", "/usr/bin/python3", (3, 11, 2), "linux", 1 << 40, True, gpus)


def test_hosts_are_read_in_all_their_forms_and_ordered_as_torch_orders_them(tmp_path: Path) -> None:
    file = tmp_path / "my hosts.yaml"
    file.write_text("- b@10.0.0.12:2222\n- {host: '[::1]:22', base: ~/x, python: python3.12}\n- a@10.0.0.11\n")
    machines = read_options({"hosts": str(file), "base": "/data"}).machines
    assert [one.host for one in machines] == [
        Host("10.0.0.11", "a"),
        Host("10.0.0.12", "b", 2222),
        Host("::1", None, 22),
    ]
    assert [one.base for one in machines] == ["/data", "/data", "~/x"]
    assert read_options({"hosts": "a@h"}).machines[0].host == Host("h", "a")
    file.write_text("u@h1\nu@h2:2222\n")  # a line each, no YAML list
    assert [str(one.host) for one in read_options({"hosts": str(file)}).machines] == ["u@h1", "u@h2:2222"]


@pytest.mark.parametrize("text", ["", "hosts: {}", "- [a", "- {hots: a}", "- 3", "x: 1", "\x00"])
def test_a_hosts_file_that_means_nothing_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "hosts.yaml"
    file.write_text(text)
    with pytest.raises(BadInput) as caught:
        read_options({"hosts": str(file)})
    assert str(file) in str(caught.value)


def test_another_gpu_than_planned_too_few_and_a_mixture_are_bad_input() -> None:
    job = Job("id", "n", Path("/r"), 2, 1, "cuda", plan={"profile": {"capacity_gib": 79.25}})
    _refuse_other_gpus(job, {"a": seen(A100), "b": seen(A100)})
    with pytest.raises(BadInput, match="different GPUs"):
        _refuse_other_gpus(job, {"a": seen(A100), "b": seen(H100)})
    with pytest.raises(BadInput, match="b shows 0"):
        _refuse_other_gpus(job, {"a": seen(A100), "b": seen()})
    with pytest.raises(BadInput, match="a NVIDIA A100 of a has 24"):
        _refuse_other_gpus(job, {"a": seen({**A100, "memory_mib": "24564"}), "b": seen(A100)})


def test_drivers_of_different_branches_are_bad_input() -> None:
    _refuse_other_drivers({"a": seen(A100), "b": seen({**A100, "driver": "570.86.15"})})
    with pytest.raises(BadInput, match="different branches") as caught:
        _refuse_other_drivers({"a": seen(A100), "b": seen({**A100, "driver": "535.183.01"})})
    assert caught.value.value == "a: 570.1; b: 535.183.01"


def test_without_fabric_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PartMissing) as caught:
        SshLauncher()
    assert caught.value.fix == "pip install 'dtrain[ssh]'"


def test_a_config_moves_with_what_it_names_and_nothing_secret(tmp_path: Path) -> None:
    model, rows = tmp_path / "mo del", tmp_path / "rows;.jsonl"
    model.mkdir()
    for name in ("config.json", ".env", ".env.local"):
        (model / name).write_text("{}")
    rows.write_text("{}\n")
    config = {"base_model": str(model), "datasets": [{"path": str(rows)}, {"path": "hub/name"}], "output_dir": "/here"}
    there, inputs = bundle.moved(config, "/base/run")
    assert there["base_model"] == "/base/run/inputs/base_model/mo del"
    assert there["datasets"][0]["path"] == "/base/run/inputs/datasets-0/rows;.jsonl"
    assert there["datasets"][1]["path"] == "hub/name"
    assert there["output_dir"] == "/base/run"
    assert config["output_dir"] == "/here"
    assert sorted(one.there for one in bundle.shipped(inputs)) == [
        "inputs/base_model/mo del/config.json",
        "inputs/datasets-0/rows;.jsonl",
    ]


def test_a_project_is_what_git_tracks_as_it_is_now(tmp_path: Path) -> None:
    for name in ("a.py", "b c.py", ".env", "untracked.py"):
        (tmp_path / name).write_text("1")
    for words in (["init", "-q"], ["add", "a.py", "b c.py", ".env"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    (tmp_path / "a.py").write_text("2")
    assert [one.there for one in bundle.tracked_files(tmp_path)] == ["project/a.py", "project/b c.py"]
    with pytest.raises(BadInput, match="git does not list"):
        bundle.tracked_files(Path("/proc"))


def test_the_wheel_of_the_checkout_installs_with_its_launchers_and_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DTRAIN_HOME", str(tmp_path))
    wheel = bundle_wheel.wheel()
    names = zipfile.ZipFile(wheel).namelist()
    assert {"dtrain/launch/agent.py", "dtrain_launchers/ssh.py", "dtrain/_assets/configs/storyteller.yaml"} <= set(
        names
    )
    made = wheel.stat().st_mtime_ns
    assert bundle_wheel.wheel().stat().st_mtime_ns == made
    target = tmp_path / "site"
    flags = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", "--target"]
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, str(target), str(wheel)], check=True)
    again = bundle_wheel._from_installed(next(iter(_distributions(target))))
    assert set(zipfile.ZipFile(again).namelist()) == set(names)  # put together again from what pip wrote


def _distributions(folder: Path):  # type: ignore[no-untyped-def]
    from importlib.metadata import distributions

    return [one for one in distributions(path=[str(folder)]) if one.name == distribution("dtrain").name]


def test_the_probe_answers_on_any_python_and_names_the_nearest_folder(tmp_path: Path) -> None:
    text = Path(probe.__file__).read_bytes()
    done = subprocess.run([sys.executable, "-", str(tmp_path / "a" / "b")], input=text, capture_output=True, check=True)
    told = Seen(**json.loads(done.stdout.splitlines()[-1]))
    assert told.base == str(tmp_path / "a" / "b")
    assert told.writable
    assert told.free_bytes > 0


def test_the_gate_runs_its_cpu_part_and_names_what_fails(tmp_path: Path) -> None:
    plan = {"model": {"parameters": 10**6, "trainable_parameters": 10**6}}
    fits = gate.Wanted.of(plan, "cpu", 2, str(tmp_path / "run"))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "dtrain.launch.gate"], input=json.dumps(asdict(fits)).encode(),
        capture_output=True, check=True,
    )  # fmt: skip
    findings = json.loads(done.stdout.splitlines()[-1])["findings"]
    assert gate.refusals(findings) == []
    assert {one["part"] for one in findings} == {"disk", "torch", "cpu matmul"}
    huge = gate.Wanted.of({"model": {"parameters": 10**15, "trainable_parameters": 10**15}}, "cpu", 2, str(tmp_path))
    assert next(gate.examine(huge)).ok is False
    no_gpus = gate.Wanted.of(plan, "cuda", 99, str(tmp_path))
    *_, last = gate.examine(no_gpus)
    assert (last.part, last.ok) == ("GPUs listed", False)  # and torch was not tried
    assert "the plan has 99" in last.found
