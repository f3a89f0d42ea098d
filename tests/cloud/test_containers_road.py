"""RunPod and Vast, the whole road for real: a container that runs its start command, SSH, a run, home, gone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dtrain_launchers.runpod import RunpodLauncher
from dtrain_launchers.vast import VastLauncher

from dtrain.cloud.launcher import CloudLauncher
from dtrain.launch.api import Job
from dtrain.launch.ending import Ending
from dtrain.paths import RunPaths
from tests.cloud.client_leaks import sweep_client
from tests.cloud.containers_world import RUNPOD_KEY, VAST_KEY, ContainersWorld, runpod_world, vast_world
from tests.cloud.datacenter import Datacenter
from tests.cloud.leaks import Case, cases_of, gc_once, kill_keeper, table, try_case
from tests.cloud.runpod_server import RunpodServer
from tests.cloud.secrets import holding
from tests.launch.launcher_contract import LauncherContract
from tests.waiting import wait_until

SWEEP = os.environ.get("DTRAIN_LEAK_SWEEP", "")
long = pytest.mark.skipif(
    not SWEEP, reason="minutes: DTRAIN_LEAK_SWEEP names a folder for the table of every call and stage"
)
NewJob = Callable[..., Job]
WORLDS = {"runpod": runpod_world, "vast": vast_world}


@pytest.fixture(scope="module", params=list(WORLDS))
def world(datacenter: Datacenter, request: pytest.FixtureRequest) -> Iterator[ContainersWorld]:
    made = WORLDS[request.param](datacenter)
    yield made
    made.close()


@pytest.fixture
def launcher(world: ContainersWorld) -> CloudLauncher:
    return launcher_of(world)


def launcher_of(world: ContainersWorld) -> CloudLauncher:
    made: CloudLauncher = RunpodLauncher() if isinstance(world.server, RunpodServer) else VastLauncher()
    return made


def test_the_whole_road(
    world: ContainersWorld, launcher: CloudLauncher, cloud_job: NewJob, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and secrets stand in no file, here or on a machine."""
    monkeypatch.setenv("HF_TOKEN", "hf_a-token-of-a-test")
    job = cloud_job(8)
    handle = launcher.submit(job, launcher.render(job))
    wait_until(lambda: launcher.status(handle).state not in ("pending", "running"), 60)
    ending = Ending.read(RunPaths(job.folder))
    assert ending is not None
    assert ending.code == 0, ending
    assert len(RunPaths(job.folder).metrics.read_text().splitlines()) == 8
    assert (world.machines(), len(world.created)) == ([], 1)
    folders = (home, job.folder, world.datacenter.folder)
    assert holding((RUNPOD_KEY, VAST_KEY, os.environ["HF_TOKEN"]), *folders) == []


def test_a_container_that_nobody_looks_after_ends_its_rental(
    world: ContainersWorld, launcher: CloudLauncher, cloud_job: NewJob, datacenter: Datacenter
) -> None:
    """The client is dead and the time of user data's timer is over: the container's own key is all there is."""
    job = cloud_job(100_000)
    handle = launcher.submit(job, launcher.render(job))
    wait_until(lambda: launcher.status(handle).state == "running", 60)
    kill_keeper(RunPaths(job.folder))
    assert len(world.machines()) == 1
    [machine] = datacenter.on
    machine.run("pkill", "-f", "^sleep [0-9]+$")  # the timer's time is over
    wait_until(lambda: world.machines() == [], 30)
    gc_once()
    assert (world.machines(), len(world.created)) == ([], 1)


CASES = {
    "runpod": ("podFindAndDeployOnDemand", "podTerminate"),
    "vast": ("PUT asks", "DELETE instances"),
}


@pytest.mark.parametrize(
    ("which", "when"),
    [(0, "before"), (0, "after"), (1, "after")],
    ids=["before create", "after create", "after destroy"],
)
def test_nothing_is_left_lost_or_doubled(
    which: int, when: str, world: Any, launcher: CloudLauncher, datacenter: Datacenter, cloud_job: NewJob
) -> None:
    case = Case(CASES[launcher.name][which], when)
    outcome = try_case(case, world, datacenter, launcher, cloud_job(8), gc_once)
    assert outcome.is_good, outcome


@long
def test_every_call_and_every_stage(
    world: Any, launcher: CloudLauncher, datacenter: Datacenter, cloud_job: NewJob, tmp_path: Path
) -> None:
    job = cloud_job(8)
    handle = launcher.submit(job, launcher.render(job))
    wait_until(lambda: launcher.status(handle).state not in ("pending", "running"), 60)
    cases = cases_of(list(world.tripwire.calls))
    outcomes = [try_case(case, world, datacenter, launcher, cloud_job(8), gc_once) for case in cases]
    outcomes += sweep_client(world, datacenter, launcher, cloud_job(8).options, tmp_path)
    told = table(launcher.name, outcomes)
    Path(SWEEP, f"leaks_{launcher.name}.json").write_text(json.dumps(told, indent=1) + "\n")
    assert (told["reached"], told["leaked"], told["lost"], told["doubled"]) == (told["tried"], 0, 0, 0)


@long
class TestContract(LauncherContract):
    @pytest.fixture
    def launcher(self, world: ContainersWorld) -> CloudLauncher:
        return launcher_of(world)

    @pytest.fixture
    def new_job(self, cloud_job: NewJob) -> NewJob:
        return cloud_job


@long
def test_a_spot_container_that_is_stopped_is_destroyed_and_the_run_goes_on(
    world: ContainersWorld, launcher: CloudLauncher, cloud_job: NewJob, datacenter: Datacenter
) -> None:
    job = cloud_job(200, options={"spot": True, "usd_per_hour": 2.0})
    handle = launcher.submit(job, launcher.render(job))
    metrics = RunPaths(job.folder).metrics
    wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0, 60)
    world.take_back()
    wait_until(lambda: launcher.status(handle).state not in ("pending", "running"), 90)
    ending = Ending.read(RunPaths(job.folder))
    assert ending is not None
    assert ending.code == 0, ending
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 201))
    assert (world.machines(), len(world.created)) == ([], 2)
