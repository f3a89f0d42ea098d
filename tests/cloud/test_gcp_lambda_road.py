"""Google and Lambda, the whole road for real: their APIs, a machine that boots, SSH, a run, home, gone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dtrain_launchers.gcp import GcpLauncher
from dtrain_launchers.lambda_cloud import LambdaLauncher

from dtrain.cloud.launcher import CloudLauncher
from dtrain.errors import LauncherRefused
from dtrain.launch.api import Handle, Job
from dtrain.launch.ending import Ending
from dtrain.paths import RunPaths
from tests.cloud import lambda_world
from tests.cloud.client_leaks import sweep_client
from tests.cloud.datacenter import Datacenter, Machine
from tests.cloud.gcp_world import GcpWorld
from tests.cloud.lambda_world import LambdaWorld
from tests.cloud.leaks import Case, cases_of, gc_once, kill_keeper, table, try_case
from tests.cloud.secrets import holding
from tests.cloud.served import Fault
from tests.launch.launcher_contract import LauncherContract
from tests.waiting import wait_until

NewJob = Callable[..., Job]
AnyWorld = GcpWorld | LambdaWorld
PROVIDERS: dict[str, tuple[Callable[[Datacenter], AnyWorld], type[CloudLauncher]]] = {
    "gcp": (GcpWorld, GcpLauncher),
    "lambda": (LambdaWorld, LambdaLauncher),
}
AS_OFFERED = {"machine": None, "usd_per_hour": None}
"""The provider is asked what it has."""
SWEEP = os.environ.get("DTRAIN_LEAK_SWEEP", "")


@pytest.fixture(scope="module", params=list(PROVIDERS))
def world(datacenter: Datacenter, request: pytest.FixtureRequest) -> Iterator[AnyWorld]:
    made = PROVIDERS[request.param][0](datacenter)
    yield made
    made.close()


def launcher_of(world: AnyWorld) -> CloudLauncher:
    return next(launcher for kind, launcher in PROVIDERS.values() if type(world) is kind)()


@pytest.fixture
def launcher(world: AnyWorld) -> CloudLauncher:
    return launcher_of(world)


def test_the_whole_road(
    world: AnyWorld, launcher: CloudLauncher, cloud_job: NewJob, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and secrets stand in no file, here or on a machine."""
    monkeypatch.setenv("HF_TOKEN", "hf_a-token-of-a-test")
    job = cloud_job(8, options=AS_OFFERED)
    handle = launcher.submit(job, launcher.render(job))
    wait_until(lambda: launcher.status(handle).state not in ("pending", "running"), 60)
    ending = Ending.read(RunPaths(job.folder))
    assert ending is not None
    assert ending.code == 0, ending
    assert len(RunPaths(job.folder).metrics.read_text().splitlines()) == 8
    assert (world.machines(), world.leftovers(), len(world.created)) == ([], [], 1)
    assert holding((lambda_world.KEY, os.environ["HF_TOKEN"]), home, job.folder, world.datacenter.folder) == []


def test_a_refusal_rents_nothing_and_leaves_nothing(
    world: AnyWorld, launcher: CloudLauncher, cloud_job: NewJob
) -> None:
    job = cloud_job(8)
    rendered = launcher.render(job)
    if isinstance(world, GcpWorld):
        world.server.fail_next.append(("ZONE_RESOURCE_POOL_EXHAUSTED", "The zone is full"))
    else:
        world.server.fail_next.append((400, "instance-operations/launch/insufficient-capacity", "Full"))
    with pytest.raises(LauncherRefused, match=r"[Ff]ull"):
        launcher.submit(job, rendered)
    assert (world.machines(), world.leftovers(), world.created) == ([], [], [])


def test_a_full_zone_sends_the_run_to_the_next_zone_of_its_region(
    datacenter: Datacenter, cloud_job: NewJob, world: AnyWorld, launcher: CloudLauncher
) -> None:
    if not isinstance(world, GcpWorld):
        pytest.skip("Lambda has regions only")
    job = cloud_job(2, options={**AS_OFFERED, "regions": ["us-central1"]})
    world.server.fail_next.append(("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "The zone is full"))
    handle = launcher.submit(job, launcher.render(job))
    wait_until(lambda: launcher.status(handle).state not in ("pending", "running"), 60)
    asked = [one.path.split("/")[-2] for one in world.server.sent("POST", "/instances$")]
    assert asked == ["us-central1-a", "us-central1-b"]
    assert (world.machines(), world.leftovers(), len(world.created)) == ([], [], 1)


CASES = {
    "gcp": [Case("insert_instance", "after"), Case("delete_instance", "after")],
    "lambda": [Case("launch", "after"), Case("terminate", "after")],
}
"""Some of them: a sweep tries all."""


@pytest.mark.parametrize("number", range(2))
def test_nothing_is_left_lost_or_doubled(
    number: int, world: AnyWorld, launcher: CloudLauncher, datacenter: Datacenter, cloud_job: NewJob
) -> None:
    outcome = try_case(CASES[launcher.name][number], world, datacenter, launcher, cloud_job(8), gc_once)
    assert outcome.is_good, outcome
    assert world.leftovers() == []


@pytest.mark.skipif(not SWEEP, reason="minutes: DTRAIN_LEAK_SWEEP names a folder for the table of every call and stage")
def test_every_call_and_every_stage(
    world: AnyWorld, launcher: CloudLauncher, datacenter: Datacenter, cloud_job: NewJob, tmp_path: Path
) -> None:
    job = cloud_job(8)
    handle = launcher.submit(job, launcher.render(job))
    wait_until(lambda: launcher.status(handle).state not in ("pending", "running"), 60)
    cases = cases_of(list(world.tripwire.calls))
    outcomes, left = [], []
    for case in cases:
        outcomes.append(try_case(case, world, datacenter, launcher, cloud_job(8), gc_once))
        left += world.leftovers()
    outcomes += sweep_client(world, datacenter, launcher, cloud_job(8).options, tmp_path)
    left += world.leftovers()
    told = table(launcher.name, outcomes)
    Path(SWEEP, f"leaks_{launcher.name}.json").write_text(json.dumps(told, indent=1) + "\n")
    assert (told["reached"], told["leaked"], told["lost"], told["doubled"]) == (told["tried"], 0, 0, 0)
    assert left == []


class TestContract(LauncherContract):
    """What every launcher must keep; minutes, so only with the sweep."""

    __test__ = bool(SWEEP)

    @pytest.fixture
    def launcher(self, world: AnyWorld) -> CloudLauncher:
        return launcher_of(world)

    @pytest.fixture
    def new_job(self, cloud_job: NewJob) -> NewJob:
        return cloud_job


class TestUnanswered:
    """Lambda knows no tokens: an order without an answer is looked for by its name. Half a minute: with the sweep."""

    __test__ = bool(SWEEP)

    @pytest.fixture
    def world(self, datacenter: Datacenter) -> Iterator[LambdaWorld]:
        made = LambdaWorld(datacenter)
        yield made
        made.close()

    @pytest.mark.parametrize("performed", [False, True])
    def test_it_is_one_machine_or_none(self, world: LambdaWorld, cloud_job: NewJob, performed: bool) -> None:
        job, launcher = cloud_job(8), LambdaLauncher()
        world.server.faults.append(Fault("POST", "/launch$", cut=True, performed=performed))
        if performed:
            handle = launcher.submit(job, launcher.render(job))
            wait_until(lambda: launcher.status(handle).state == "done", 60)
        else:
            with pytest.raises(LauncherRefused, match="no such machine appeared"):
                launcher.submit(job, launcher.render(job))
        assert len(world.server.sent("POST", "/launch$")) == 1
        assert (world.machines(), world.leftovers()) == ([], [])


class TestSpot:
    """A spot machine at Google that is taken back; only with the sweep, as AWS tries the same road."""

    __test__ = bool(SWEEP)

    @pytest.fixture
    def world(self, datacenter: Datacenter) -> Iterator[GcpWorld]:
        made = GcpWorld(datacenter)
        yield made
        made.close()

    def test_it_is_replaced_and_the_run_goes_on(
        self, world: GcpWorld, cloud_job: NewJob, datacenter: Datacenter
    ) -> None:
        job, launcher = cloud_job(200, options={"spot": True}), GcpLauncher()
        handle = launcher.submit(job, launcher.render(job))
        metrics = RunPaths(job.folder).metrics
        wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0, 60)
        [machine] = datacenter.on
        machine.take_back()
        wait_until(lambda: launcher.status(handle).state == "done", 60)
        assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 201))
        asked = [one.body["scheduling"]["provisioningModel"] for one in world.server.sent("POST", "/instances$")]
        assert (asked, world.machines(), world.leftovers()) == (["SPOT", "SPOT"], [], [])


class TestWatchdog:
    """On a machine at Lambda, which has no end of its own for it."""

    @pytest.fixture
    def world(self, datacenter: Datacenter) -> Iterator[LambdaWorld]:
        made = LambdaWorld(datacenter)
        yield made
        made.close()

    def test_keeper_and_client_are_dead_and_the_machine_ends_itself(
        self, world: LambdaWorld, cloud_job: NewJob, datacenter: Datacenter
    ) -> None:
        """The run is asked to save, and does, before Lambda is asked for the end."""
        options = {"max_hours": 80 / 3600, "grace_seconds": 1}
        job = cloud_job(100_000, options=options, plan={"billed_hours": 0.001})
        machine = self.running(job, datacenter)
        kill_keeper(RunPaths(job.folder))
        wait_until(lambda: world.server.sent("POST", "/terminate"), 60)
        assert "asked to save: code 0" in machine.run("cat", "/dev/shm/dtrain-watchdog.log")
        assert machine.run("sh", "-c", "cat /opt/dtrain/runs/*/dtrain/exit.json").count('"code": 75') == 1
        LambdaLauncher().kill(Handle("lambda", job.run_id, str(job.folder)))
        assert (world.machines(), world.leftovers()) == ([], [])

    def running(self, job: Job, datacenter: Datacenter) -> Machine:
        launcher = LambdaLauncher()
        handle = launcher.submit(job, launcher.render(job))
        wait_until(lambda: launcher.status(handle).state == "running", 60)
        [machine] = datacenter.on
        return machine
