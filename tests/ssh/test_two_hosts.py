"""The whole road as a person types it, on two hosts with disks of their own: launch, stop, resume, fetch."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from dtrain.launch.ending import last_checkpoint
from dtrain.launch.process import environment, every_process
from dtrain.launch.tunnel import known_hosts
from dtrain.paths import RunPaths
from tests.ssh.conftest import VENV
from tests.ssh.hosts import Host
from tests.ssh.typed import MODEL, Typed
from tests.waiting import wait_until

YAML = """\
base_model: ./model
reinit_weights: true
train_tokenizer: {{vocab_size: 300}}
datasets:
  - path: "my rows; 'quoted'.jsonl"
    type: alpaca
sequence_len: 128
micro_batch_size: 1
global_batch_size: 2
zero_stage: 2
max_steps: 2000
save_steps: 20
save_total_limit: 100
max_restarts: 1
logging_steps: 1
bf16: false
launchers:
  ssh:
    hosts: hosts.yaml
    key: {key}
    venv: {venv}
    env: {{OMP_NUM_THREADS: 1}}
"""


@pytest.fixture
def project(tmp_path: Path, hosts: list[Host]) -> Path:
    folder = tmp_path / "project"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text(json.dumps(MODEL))
    (folder / "two.yaml").write_text(YAML.format(key=hosts[0].key, venv=VENV))
    rows = [{"instruction": f"count {number}", "output": f"{number} " * 8} for number in range(40)]
    (folder / "my rows; 'quoted'.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bases = [f"- {{host: {host.where}, base: '{tmp_path}/base {n}'}}\n" for n, host in enumerate(hosts)]
    (folder / "hosts.yaml").write_text("".join(bases))
    return folder


@pytest.mark.slow
def test_two_hosts_train_stop_go_on_and_the_model_comes_home(project: Path, tmp_path: Path) -> None:
    dtrain = Typed(project)
    run = dtrain.json("launch", "two.yaml", "--profile", "cpux1x2", "--on", "ssh", "--detach")["id"]
    dtrain.wait(run, lambda told: (told.get("step") or 0) >= 3)
    assert "interrupted" in dtrain("stop", run)
    told = dtrain.json("status", run)
    assert told["exit_code"] == 75
    step = told["step"]
    parts = sorted(path.name for path in tmp_path.glob(f"base*/runs/{run}/dtrain/checkpoints/step-{step}/rank-*"))
    assert parts == ["rank-0.safetensors", "rank-1.safetensors"]  # each host has the part of its rank
    dtrain("resume", run, "--detach", "--set", "zero_stage=0")
    dtrain.wait(run, lambda told: (told.get("step") or 0) > step)
    everywhere = list(tmp_path.glob(f"base*/runs/{run}/dtrain/checkpoints/step-{step}/rank-*"))
    assert len(everywhere) == 4  # before it went on, both hosts had all of it
    there = [RunPaths(path) for path in sorted(tmp_path.glob(f"base*/runs/{run}"))]
    wait_until(lambda: all((last_checkpoint(paths) or 0) > step for paths in there))
    _kill_rank(1, run)  # both hosts begin another life by themselves, each from its own part
    wait_until(lambda: all(b"starting again from the last" in paths.launch_log.read_bytes() for paths in there))
    wait_until(lambda: len(_went_on(there[0])) == 2)
    went_on = _went_on(there[0])[1]
    assert went_on > step
    dtrain.wait(run, lambda told: (told.get("step") or 0) > went_on)
    assert [len(list(paths.checkpoint(went_on).glob("rank-*"))) for paths in there] == [1, 1]
    dtrain("stop", run)
    fetched = dtrain.json("fetch", run)
    assert fetched["brought_bytes"] > 0
    assert dtrain.json("fetch", run)["brought_bytes"] == 0
    (folder,) = project.glob("runs/*")
    metrics = [json.loads(line)["step"] for line in (folder / "dtrain/metrics.jsonl").read_text().splitlines()]
    assert metrics == list(range(1, len(metrics) + 1))
    dtrain("export", run, str(tmp_path / "model"))
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert not [one for one in every_process() if run.encode() in _command(one.pid)]


def test_a_dry_run_over_ssh_prints_what_is_sent_and_asks_before_it_trusts(project: Path) -> None:
    known_hosts().unlink()
    told = Typed(project).json("launch", "two.yaml", "--profile", "cpux1x2", "--on", "ssh", "--dry-run")
    assert len([name for name in told["files"] if name.endswith("dtrain/launch.json")]) == 2
    assert any("my rows" in note for note in told["notes"])
    assert len(told["would_be_refused"]) == 2
    assert "nobody vouched for" in told["would_be_refused"][0]
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("profile", "sets", "says"),
    [
        ("cpu", [], "2 hosts are named"),
        ("cpux1x2", ["launchers.ssh.hosts=no_such.yaml"], "cannot be read"),
        ("cpux1x2", ["launchers.ssh.hosts=[a@h, a@h:22]"], "the same host twice"),
        ("cpux1x2", ["launchers.ssh.hosts=[]"], "hosts"),
        ("cpux1x2", ["launchers.ssh.host=x"], "no such option"),
        ("cpux1x2", ["launchers.ssh.hosts=['a b; rm -rf /']"], "not a host"),
        ("cpux1x2", ["launchers.ssh.hosts=['-oProxyCommand=x']"], "not a host"),
        ("cpux1x2", ["launchers.ssh.hosts=['h:99999']"], "not a host"),
        ("cpux1x2", ["launchers.ssh.base=relative"], "base"),
        ("cpux1x2", ["launchers.ssh.key=/no/such/key"], "no such key file"),
    ],
)
def test_bad_input_is_exit_2_with_its_key_and_writes_nothing(
    project: Path, profile: str, sets: list[str], says: str
) -> None:
    words = [word for one in sets for word in ("--set", one)]
    told = Typed(project).json("launch", "two.yaml", "--profile", profile, "--on", "ssh", *words, code=2)
    assert says in str(told["error"])
    assert told["error"]["key"].startswith(("launchers.ssh", "hosts"))
    assert not (project / "runs").exists()


def _went_on(paths: RunPaths) -> list[int]:
    return [int(step) for step in re.findall(r"going on after step (\d+)", paths.rank_log(0).read_text())]


def _kill_rank(rank: int, run: str) -> None:
    mine = [one for one in every_process() if environment(one.pid).get("DTRAIN_RUN_ID") == run]
    (worker,) = [one for one in mine if environment(one.pid).get("RANK") == str(rank)]
    os.kill(worker.pid, signal.SIGKILL)


def _command(pid: int) -> bytes:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""
