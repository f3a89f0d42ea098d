"""How a rented run ends before its time: on a wish, at its limit, when the provider takes the machine, by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dtrain_launchers.aws import Aws, AwsLauncher

from dtrain.cloud.collect import collect, survey
from dtrain.cloud.machines import Terms, order_of
from dtrain.cloud.options import CloudOptions
from dtrain.cloud.provider import Offer
from dtrain.launch.api import Handle, Job
from dtrain.launch.ending import Ending, put_aside
from dtrain.paths import RunPaths
from tests.cloud.aws_world import REGION, AwsWorld, a_bucket
from tests.cloud.datacenter import Datacenter, Machine
from tests.cloud.leaks import gc_once, kill_keeper, run_folders
from tests.cloud.secrets import holding
from tests.waiting import wait_until

NewJob = Callable[..., Job]
LONG = 100_000
QUICK = {"billed_hours": 0.001}


@pytest.fixture(scope="module")
def world(datacenter: Datacenter) -> Iterator[AwsWorld]:
    made = AwsWorld(datacenter)
    yield made
    made.close()


def submitted(job: Job) -> tuple[AwsLauncher, Handle]:
    launcher = AwsLauncher()
    return launcher, launcher.submit(job, launcher.render(job))


def wait_for_steps(job: Job) -> None:
    metrics = RunPaths(job.folder).metrics
    wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0, 60)


def steps_of(job: Job) -> list[int]:
    return [json.loads(line)["step"] for line in RunPaths(job.folder).metrics.read_text().splitlines()]


def ended(job: Job) -> Ending:
    paths = RunPaths(job.folder)
    wait_until(paths.exit.exists, 60)
    ending = Ending.read(paths)
    assert ending is not None
    return ending


def test_a_wish_to_stop_saves_and_a_resume_takes_another_machine(world: AwsWorld, cloud_job: NewJob) -> None:
    job = cloud_job(300)
    launcher, handle = submitted(job)
    wait_for_steps(job)
    launcher.cancel(handle)
    assert launcher.status(handle).state == "interrupted"
    assert list(RunPaths(job.folder).checkpoints.glob("step-*/manifest.json"))
    assert world.machines() == []
    put_aside(RunPaths(job.folder))
    launcher.submit(job, launcher.render(job))
    assert ended(job).code == 0
    assert (steps_of(job), len(world.created)) == (list(range(1, 301)), 2)


def test_from_another_computer_gc_ends_only_the_run_that_is_named(
    world: AwsWorld, cloud_job: NewJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.hardware = False
    order = Terms("20261123-191500-k3f9", 1, CloudOptions(), None, "203.0.113.7/32", "aws")
    Aws().create(order_of(order, 0, 1, Offer("aws", REGION, "c5.xlarge", "cpu", 0, 0.2), 3600.0))
    world.hardware = True
    cloud_job()  # its environment: the provider's
    monkeypatch.setenv("DTRAIN_HOME", str(tmp_path / "another"))
    found = survey()
    (stray,) = found.strays
    assert (stray.run_id, stray.output, found.problems, "aws" in found.asked) == (order.run_id, None, [], True)
    assert "left alone" in collect(stray, False, print)
    assert len(world.machines()) == 1
    collect(stray, True, print)
    assert world.machines() == []


def test_gc_lets_a_run_save_that_nobody_keeps(world: AwsWorld, datacenter: Datacenter, cloud_job: NewJob) -> None:
    job = cloud_job(LONG)
    submitted(job)
    wait_for_steps(job)
    kill_keeper(RunPaths(job.folder))
    gc_once()
    assert ended(job).code == 75
    assert (run_folders(job.run_id, datacenter)[0] / "dtrain" / "exit.json").exists(), "it was told to save there"
    assert list(RunPaths(job.folder).checkpoints.glob("step-*/manifest.json"))
    assert world.machines() == []


def test_a_run_that_was_killed_before_its_first_order_is_collected(world: AwsWorld, cloud_job: NewJob) -> None:
    job = cloud_job()
    paths = RunPaths(job.folder)
    AwsLauncher().begin(job)
    kill_keeper(paths)
    gc_once()
    assert ended(job).code in (0, 75)
    assert world.machines() == []


def test_another_keeper_goes_on_where_one_was_killed(
    world: AwsWorld, cloud_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without credentials leaves the run as it is, for the next."""
    job = cloud_job(300)
    launcher, handle = submitted(job)
    wait_for_steps(job)
    kill_keeper(RunPaths(job.folder))
    key = os.environ["AWS_ACCESS_KEY_ID"]
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    wait_until(lambda: "its keeper left" in launcher.status(handle).reason, 60)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    wait_until(lambda: launcher.status(handle).state == "done", 60)
    assert (steps_of(job), len(world.created)) == (list(range(1, 301)), 1)


def test_a_spot_machine_that_is_taken_is_replaced(
    world: AwsWorld, datacenter: Datacenter, cloud_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one goes on from the checkpoint at home; with `output` the bucket, too, has the whole run."""
    s3 = a_bucket(world, monkeypatch)
    before = len(datacenter.machines)
    secrets = ["AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    job = cloud_job(400, options={"spot": True, "output": "s3://models/mine", "secrets": secrets})
    launcher, handle = submitted(job)
    wait_for_steps(job)
    machine: Machine = list(datacenter.machines.values())[before]
    machine.take_back()
    wait_until(lambda: launcher.status(handle).state not in ("pending", "running"), 90)
    assert ended(job).reason == "done"
    assert len(world.created) == 2
    assert steps_of(job) == list(range(1, 401)), "the second machine went on after the first one's checkpoint"
    assert world.machines() == []
    (taken,) = run_folders(job.run_id, datacenter)[0].glob("dtrain/exit.json")
    step = json.loads(taken.read_text())["step"]
    keys = {one["Key"] for one in s3.list_objects_v2(Bucket="models")["Contents"]}
    assert f"mine/dtrain/checkpoints/step-{step}/manifest.json" in keys
    body = s3.get_object(Bucket="models", Key="mine/dtrain/metrics.jsonl")["Body"].read()
    assert body == RunPaths(job.folder).metrics.read_bytes()


def test_the_machine_ends_itself_when_nobody_is_there(
    world: AwsWorld, datacenter: Datacenter, cloud_job: NewJob
) -> None:
    """The keeper is dead: the run saves on the machine before the limit, and the machine goes at it."""
    job = cloud_job(LONG, plan=QUICK, options={"max_hours": 12 / 3600})
    before = len(datacenter.machines)
    submitted(job)
    wait_for_steps(job)
    kill_keeper(RunPaths(job.folder))
    machine = list(datacenter.machines.values())[before]
    wait_until(lambda: not machine.is_on, 60)
    wait_until(lambda: world.machines() == [], 10)
    folder = run_folders(job.run_id, datacenter)[0]
    assert json.loads((folder / "dtrain" / "exit.json").read_text())["code"] == 75
    assert list(folder.glob("dtrain/checkpoints/step-*/manifest.json"))


def test_the_limit_stops_the_run_and_brings_it_home(world: AwsWorld, cloud_job: NewJob) -> None:
    job = cloud_job(LONG, plan=QUICK, options={"max_cost": 0.2 * 14 / 3600})
    submitted(job)
    ending = ended(job)
    assert ending.code == 75
    assert "--max-cost" in ending.reason
    assert world.machines() == []


def test_no_key_and_no_secret_is_written_anywhere(
    world: AwsWorld, datacenter: Datacenter, cloud_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file of the run here, of dtrain's home, and of the machine."""
    before = len(datacenter.machines)
    monkeypatch.setenv("HF_TOKEN", "hf_a-token-of-a-test")
    job = cloud_job(5)
    launcher, handle = submitted(job)
    wait_until(lambda: launcher.status(handle).state == "done", 60)
    machine = list(datacenter.machines.values())[before]
    keys = [value for name, value in world.environment.items() if "KEY" in name]
    folders = (job.folder, job.folder.parent / "home", machine.folder)
    assert (len(keys), holding([*keys, os.environ["HF_TOKEN"]], *folders)) == (2, [])
    login = (machine.folder / "user_data").read_text()
    assert login.count("PRIVATE KEY-----") == 2, "the host key, and no other"
