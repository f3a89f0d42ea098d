"""SLURM from a laptop: a real sshd on a login node of the cluster; here there is no SLURM that answers."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dtrain_launchers import slurm
from dtrain_launchers.slurm import SlurmLauncher

from dtrain.launch.api import Handle, Job
from dtrain.launch.tunnel import known_hosts
from dtrain.paths import RunPaths
from tests.launch.conftest import left_over, wait_until
from tests.launch.launcher_contract import LauncherContract
from tests.slurm.cluster import Cluster, lacking
from tests.slurm.login import Login, a_login_node
from tests.ssh.conftest import VENV
from tests.ssh.hosts import why_not

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("hosts")]


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


class TestLogin(LauncherContract):
    @pytest.fixture
    def launcher(self) -> SlurmLauncher:
        return SlurmLauncher()

    @pytest.fixture
    def new_job(self, login_job: Callable[..., Job]) -> Callable[..., Job]:
        return login_job
