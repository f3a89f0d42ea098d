"""What every launcher keeps, on a real cluster."""

from __future__ import annotations

import pytest
from dtrain_launchers.slurm import SlurmLauncher

from tests.launch.launcher_contract import LauncherContract
from tests.slurm.cluster import Cluster


@pytest.mark.slow
@pytest.mark.xdist_group("slurm")
class TestSlurm(LauncherContract):
    @pytest.fixture
    def launcher(self, cluster: Cluster) -> SlurmLauncher:
        return SlurmLauncher()
