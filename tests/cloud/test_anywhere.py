"""`--anywhere` over two providers, the whole road for real: the cheaper one is full, the other one trains it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from dtrain_launchers.lambda_cloud import LambdaLauncher

from dtrain.cloud.ledger import Ledger
from dtrain.launch.api import Job
from dtrain.launch.ending import Ending
from dtrain.paths import RunPaths
from tests.cloud.containers_world import ContainersWorld, runpod_world
from tests.cloud.datacenter import Datacenter
from tests.cloud.lambda_server import KINDS, Kind
from tests.cloud.lambda_world import REGION, LambdaWorld
from tests.waiting import wait_until

AS_OFFERED = {"machine": None, "usd_per_hour": None, "regions": None, "anywhere": True}


@pytest.fixture(scope="module")
def world(datacenter: Datacenter) -> Iterator[LambdaWorld]:
    made = LambdaWorld(datacenter)
    yield made
    made.close()


@pytest.fixture
def runpod(datacenter: Datacenter) -> Iterator[ContainersWorld]:
    made = runpod_world(datacenter)
    yield made
    made.close()


def test_lambda_is_full_and_runpod_takes_the_run(
    world: LambdaWorld, runpod: ContainersWorld, cloud_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said that it had room, at the lower price; only the launch tells."""
    monkeypatch.setitem(KINDS, "gpu_1x_h100_sxm5", Kind("H100 (80 GB SXM5)", 1, 199, (REGION,)))
    for name, value in runpod.environment.items():
        monkeypatch.setenv(name, value)
    world.server.fail_next.append((400, "instance-operations/launch/insufficient-capacity", "Full."))
    plan = {"profile": {"gpu": "h100"}, "billed_hours": 0.01}
    job = replace(cloud_job(8, ranks=1, plan=plan, options=AS_OFFERED), device="cuda")
    launcher = LambdaLauncher()
    handle = launcher.submit(job, launcher.render(job))
    wait_until(lambda: launcher.status(handle).state not in ("pending", "running"), 60)
    ending = Ending.read(RunPaths(job.folder))
    assert ending is not None
    assert ending.code == 0, ending
    assert len(RunPaths(job.folder).metrics.read_text().splitlines()) == 8
    standing = Ledger(job.run_id).standing()
    assert standing is not None
    tried = [(one.provider, one.region, one.usd_per_hour, one.state) for one in standing.machines.values()]
    assert tried == [("lambda", REGION, 1.99, "refused"), ("runpod", "any data centre", 3.99, "gone")]
    assert (world.created, world.machines(), world.leftovers()) == ([], [], [])
    assert (len(runpod.created), runpod.machines()) == (1, [])
