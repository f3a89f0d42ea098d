"""AWS, the whole road for real: boto3 to moto's server, a machine that boots from user data, SSH, a run, home, gone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from dtrain_launchers.aws import AwsLauncher

from dtrain.cloud.progress import Progress
from dtrain.launch.api import Job
from dtrain.launch.ending import Ending
from dtrain.paths import RunPaths
from tests.cloud.aws_world import AwsWorld, a_bucket
from tests.cloud.client_leaks import Person, sweep_client, try_client_case
from tests.cloud.datacenter import Datacenter
from tests.cloud.leaks import Case, cases_of, gc_once, table, try_case
from tests.waiting import wait_until

NewJob = Callable[..., Job]
SWEEP = os.environ.get("DTRAIN_LEAK_SWEEP", "")


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
    """What it is said to have cost is the price times the time that AWS saw, and not more than the whole of ours."""
    job = cloud_job(8, options={"usd_per_hour": 360.0})
    began = time.time()
    assert run_to_its_end(job).code == 0
    ((made, ended),) = world.bills.values()
    told = Progress.read(RunPaths(job.folder))
    assert told is not None
    assert 0.1 * (ended - made) <= told.usd <= 0.1 * (time.time() - began)
    assert f"it cost ${told.usd:.2f}," in told.words
    assert len(RunPaths(job.folder).metrics.read_text().splitlines()) == 8
    assert (world.machines(), len(world.created)) == ([], 1)
    assert not (home / "rentals" / job.run_id).exists(), "the run's keys are removed"


def test_two_nodes_are_two_machines_of_one_region(world: AwsWorld, cloud_job: NewJob) -> None:
    job = replace(cloud_job(8), nodes=2)
    assert run_to_its_end(job).code == 0
    assert world.created == [f"dtrain-{job.run_id}-n0-a1", f"dtrain-{job.run_id}-n1-a1"]
    assert RunPaths(job.folder).node(1).log.exists()
    assert "CreatePlacementGroup" in world.tripwire.calls
    assert world.machines() == []


def test_what_a_run_makes_goes_to_a_bucket_as_well(
    world: AwsWorld, cloud_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its warden, with boto3 on the machine, before the machine goes."""
    s3 = a_bucket(world, monkeypatch)
    names = ["AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    job = cloud_job(8, options={"output": "s3://models/mine", "secrets": names})
    assert run_to_its_end(job).reason == "done"
    listed = s3.list_objects_v2(Bucket="models")
    keys = [one["Key"] for one in listed["Contents"]]
    assert {"mine/dtrain/exit.json", "mine/dtrain/metrics.jsonl"} <= set(keys)
    body = s3.get_object(Bucket="models", Key="mine/dtrain/metrics.jsonl")["Body"].read()
    assert body == RunPaths(job.folder).metrics.read_bytes()


CASES = [  # some of them: the sweep below tries all
    Case("RunInstances", "after"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_is_left_lost_or_doubled(
    case: Case, world: AwsWorld, datacenter: Datacenter, cloud_job: NewJob
) -> None:
    outcome = try_case(case, world, datacenter, AwsLauncher(), cloud_job(8), gc_once)
    assert outcome.is_good, outcome


CLIENT_CASES = [
    Case("first line of the ledger", "after", who="client"),
    Case("wait for the order", "before", who="client"),
]


@pytest.mark.parametrize("case", CLIENT_CASES, ids=str)
def test_a_client_that_is_killed_leaves_nothing(
    case: Case, world: AwsWorld, datacenter: Datacenter, cloud_job: NewJob, tmp_path: Path
) -> None:
    """Before a keeper lives nothing was rented; from then on the run needs no client."""
    person = Person.with_files(tmp_path / "person", AwsLauncher(), cloud_job(8).options)
    outcome = try_client_case(case, world, datacenter, person)
    assert outcome.is_good, outcome
    assert (outcome.code, len(world.created)) == ((75, 0) if case.when == "after" else (0, 1))


@pytest.mark.skipif(not SWEEP, reason="DTRAIN_LEAK_SWEEP names a folder for the table of every call and stage: minutes")
def test_every_call_and_every_stage(world: AwsWorld, datacenter: Datacenter, cloud_job: NewJob, tmp_path: Path) -> None:
    assert run_to_its_end(cloud_job(8)).code == 0
    cases = cases_of(list(world.tripwire.calls))
    outcomes = [try_case(case, world, datacenter, AwsLauncher(), cloud_job(8), gc_once) for case in cases]
    outcomes += sweep_client(world, datacenter, AwsLauncher(), cloud_job(8).options, tmp_path)
    told = table("aws", outcomes)
    Path(SWEEP, "leaks_aws.json").write_text(json.dumps(told, indent=1) + "\n")
    assert (told["reached"], told["leaked"], told["lost"], told["doubled"]) == (told["tried"], 0, 0, 0)
