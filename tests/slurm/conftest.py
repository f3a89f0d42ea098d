"""One cluster for all tests of a session; without root or SLURM's packages they are skipped, and say so."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from dtrain_launchers import slurm

from tests.launch.conftest import home, make_job, stand_ins  # noqa: F401
from tests.slurm import cluster as slurm_cluster
from tests.slurm.cluster import Cluster


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
    whole_cluster.wait_idle()
    yield whole_cluster
    whole_cluster.clear()
