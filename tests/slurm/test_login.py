"""SLURM from a laptop: a real sshd on a login node of the cluster; here there is no SLURM that answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from dtrain_launchers.slurm import SlurmLauncher

from dtrain.launch.api import Job, Launcher
from tests.launch.conftest import left_over
from tests.launch.launcher_contract import LauncherBasics, NewJob
from tests.slurm.cluster import Cluster
from tests.slurm.login import Login
from tests.ssh.conftest import VENV
from tests.ssh.typed import MODEL, Typed

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]


class TestLogin(LauncherBasics):
    """Of the contract what a login node makes different; the rest is TestSlurm's and the table of faults'."""

    @pytest.fixture
    def launcher(self) -> SlurmLauncher:
        return SlurmLauncher()

    @pytest.fixture
    def new_job(self, login_job: Callable[..., Job]) -> Callable[..., Job]:
        return login_job

    @pytest.mark.parametrize("name", ["qu'ote\" ;&& $(touch pwned)"])
    def test_hostile_folder_names(self, launcher: Launcher, new_job: NewJob, tmp_path: Path, name: str) -> None:
        super().test_hostile_folder_names(launcher, new_job, tmp_path, name)


YAML = """\
base_model: ./model
reinit_weights: true
train_tokenizer: {{vocab_size: 300}}
datasets:
  - path: "my rows; 'quoted'.jsonl"
    type: alpaca
sequence_len: 128
micro_batch_size: 1
max_steps: 12
logging_steps: 1
bf16: false
launchers:
  slurm:
    login: {{host: {host}, key: {key}, venv: {venv}, base: {base}}}
    env: {{OMP_NUM_THREADS: 1}}
"""


@pytest.fixture
def laptop(tmp_path: Path, login: Login) -> Path:
    """A folder of a person that no node knows of."""
    folder = tmp_path / "laptop"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text(json.dumps(MODEL))
    rows = [{"instruction": f"count {number}", "output": f"{number} " * 8} for number in range(40)]
    (folder / "my rows; 'quoted'.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = tmp_path / "cluster"
    (folder / "my.yaml").write_text(YAML.format(host=login.where, key=login.key, venv=VENV, base=base))
    return folder


def test_from_a_laptop_to_the_model_and_back(laptop: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CONF")
    dtrain = Typed(laptop)
    road = ("launch", "my.yaml", "--profile", "cpux1x2", "--on", "slurm")
    planned = dtrain.json(*road, "--dry-run")
    assert planned["would_be_refused"] == []
    run = dtrain.json(*road, "--detach")["id"]
    sent = (laptop.parent / "cluster/runs" / run / "dtrain/train.sbatch").read_text()
    (shown,) = [text for name, text in planned["files"].items() if name.endswith("train.sbatch")]
    assert sent == shown.replace(planned["run"]["id"], run)
    dtrain.wait(run, lambda told: told["state"] == "done")
    (folder,) = laptop.glob("runs/*")
    metrics = [json.loads(line)["step"] for line in (folder / "dtrain/metrics.jsonl").read_text().splitlines()]
    assert metrics == list(range(1, 13))
    assert "node 1 is slurm2" in dtrain("logs", run)
    assert not (folder / "model.safetensors").exists()
    assert dtrain.json("fetch", run)["brought_bytes"] > 0
    assert (folder / "model.safetensors").exists()
    assert dtrain.json("fetch", run)["brought_bytes"] == 0
    assert left_over(run) == []


@pytest.mark.parametrize(
    ("said", "code", "says"),
    [
        ("partition=hihg", 2, {"key": "launchers.slurm.partition", "allowed": "hasty, high, low"}),
        ("constraint=h200", 2, {"key": "launchers.slurm.constraint"}),
        ("login.host=nobody at home", 2, {"key": "launchers.slurm.login", "value": "nobody at home"}),
        ("login.bas=/x", 2, {"key": "launchers.slurm.login.bas"}),
        ("login.base=relative", 2, {"key": "launchers.slurm.login.base"}),
        ("login.host=root@10.78.0.10:2", 5, {"key": "--on"}),
        ("login.python=/no/such/python", 5, {"key": "--on"}),
    ],
)
def test_a_mistake_is_told_before_anything_is_there(laptop: Path, said: str, code: int, says: dict[str, str]) -> None:
    more = ("--set", "launchers.slurm.login.venv=null") if "python" in said else ()
    words = ("launch", "my.yaml", "--profile", "cpux1x2", "--on", "slurm", "--set", f"launchers.slurm.{said}", *more)
    told = Typed(laptop).json(*words, "--set", "launchers.slurm.login.wait_seconds=0", code=code)["error"]
    assert {key: told[key] for key in says} == says
    assert not (laptop.parent / "cluster").exists()
    assert not (laptop / "runs").exists()
