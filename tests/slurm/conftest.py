"""One cluster for all tests of a session; without root or SLURM's packages they are skipped, and say so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dtrain_launchers import slurm, slurm_job

from dtrain.launch.api import Job
from dtrain.launch.tunnel import known_hosts
from tests.launch.conftest import home, make_job, stand_ins
from tests.slurm import cluster as slurm_cluster
from tests.slurm.cluster import Cluster, lacking
from tests.slurm.login import Login, a_login_node
from tests.ssh.conftest import VENV
from tests.ssh.hosts import why_not

__all__ = ["home", "make_job", "stand_ins"]


@pytest.fixture(scope="session")
def whole_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    why = slurm_cluster.lacking()
    if why is not None:
        pytest.skip(f"NO SLURM CLUSTER, its tests do not run: {why}")
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def cluster(whole_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster, idle, and this process on its login node."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, whole_cluster.environment[name])
    for name in [name for name in os.environ if name.startswith(("SLURM_JOB", "SBATCH_", "SLURM_NODE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(slurm, "ASK_AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(slurm_job, "SETTLE_SECONDS", 0.3)
    whole_cluster.wait_idle()
    yield whole_cluster
    whole_cluster.clear()


@pytest.fixture(scope="session")
def login_node(whole_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Login]:
    missing = why_not() or lacking()
    if missing:
        pytest.skip(missing)
    with a_login_node(whole_cluster, tmp_path_factory.mktemp("login")) as login:
        yield login


@pytest.fixture
def login(login_node: Login, whole_cluster: Cluster, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Login]:
    """The login node, known; this process far from it."""
    known_hosts().parent.mkdir(parents=True, exist_ok=True)
    known_hosts().write_text(login_node.known_hosts_line)
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setattr(slurm, "ASK_AGAIN_SECONDS", 0.2)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    whole_cluster.wait_idle()
    yield login_node
    whole_cluster.clear()


@pytest.fixture
def login_job(
    login: Login, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stand_ins: None
) -> Callable[..., Job]:
    def new(steps: int = 10, **more: Any) -> Job:
        monkeypatch.setenv("STAND_IN_STEPS", str(steps))
        env = {name: value for name, value in os.environ.items() if name.startswith("STAND_IN_")}
        there = {
            "host": login.where, "key": str(login.key), "venv": VENV, "base": str(tmp_path / "cluster's own"),
            "wait_seconds": 0,
        }  # fmt: skip
        return make_job(options={"login": there, "env": env, **more.pop("options", {})}, **more)

    return new
