"""AWS, the whole road for real: boto3 to moto's server, a machine that boots from user data, SSH, a run, home, gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dtrain_launchers.aws import AwsLauncher

from dtrain.launch.api import Job
from dtrain.launch.ending import Ending
from dtrain.paths import RunPaths
from tests.cloud.aws_world import AwsWorld
from tests.cloud.datacenter import Datacenter
from tests.cloud.leaks import Case, gc_once, try_case
from tests.launch.conftest import wait_until

NewJob = Callable[..., Job]


@pytest.fixture(scope="module")
def world(datacenter: Datacenter) -> Iterator[AwsWorld]:
    made = AwsWorld(datacenter)
    yield made
    made.close()


def run_to_its_end(job: Job) -> Ending:
    launcher = AwsLauncher()
    handle = launcher.submit(job, launcher.render(job))
    wait_until(lambda: launcher.status(handle).state not in ("pending", "running"), 60)
    ending = Ending.read(RunPaths(job.folder))
    assert ending is not None
    return ending


def test_the_whole_road(world: AwsWorld, cloud_job: NewJob, home: Path) -> None:
    job = cloud_job(8)
    assert run_to_its_end(job).code == 0
    assert len(RunPaths(job.folder).metrics.read_text().splitlines()) == 8
    assert (world.machines(), len(world.created)) == ([], 1)
    assert not (home / "rentals" / job.run_id).exists(), "the run's keys are removed"


CASES = [
    Case("RunInstances", "before"),
    Case("RunInstances", "after"),
    Case("preparing", "during"),
    Case("training", "during"),
    Case("fetching", "during"),
    Case("TerminateInstances", "after"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_left_lost_or_doubled(
    case: Case, world: AwsWorld, datacenter: Datacenter, cloud_job: NewJob
) -> None:
    outcome = try_case(case, world, datacenter, AwsLauncher(), cloud_job(8), gc_once)
    assert outcome.is_good, outcome
