"""What every launcher promises, kept at AWS. Minutes: `make soak` runs it, where DTRAIN_LEAK_SWEEP is set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from dtrain_launchers.aws import AwsLauncher

from dtrain.launch.api import Job
from tests.cloud.aws_world import AwsWorld
from tests.cloud.datacenter import Datacenter
from tests.launch.launcher_contract import LauncherContract


@pytest.fixture(scope="module")
def world(datacenter: Datacenter) -> Iterator[AwsWorld]:
    made = AwsWorld(datacenter)
    yield made
    made.close()


@pytest.mark.skipif(not os.environ.get("DTRAIN_LEAK_SWEEP"), reason="minutes: make soak")
class TestAws(LauncherContract):
    @pytest.fixture
    def launcher(self, world: AwsWorld) -> AwsLauncher:
        return AwsLauncher()

    @pytest.fixture
    def new_job(self, request: pytest.FixtureRequest) -> Callable[..., Job]:
        made: Callable[..., Job] = request.getfixturevalue("cloud_job")
        return made
