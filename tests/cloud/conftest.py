"""Rented runs: a provider's server, machines that boot in namespaces, stand-ins for the worker."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dtrain.launch.api import Job
from dtrain.paths import RunPaths
from tests.cloud.datacenter import Datacenter
from tests.cloud.hurry import hurry
from tests.cloud.leaks import kill_keeper
from tests.cloud.worlds import World
from tests.launch.conftest import home, make_job, stand_ins
from tests.ssh.hosts import why_not

__all__ = ["home", "make_job", "stand_ins"]
VENV = str(Path(sys.prefix))
ON_MACHINES = {"datacenter", "world", "cloud_job"}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker has the machines; without root or sshd every test that needs them says so."""
    missing = why_not()
    for item in items:
        if item.path.parent == Path(__file__).parent and ON_MACHINES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("cloud"))
            if missing:
                item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture(scope="session")
def datacenter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Datacenter]:
    with warnings.catch_warnings():  # their own imports' warnings, once
        warnings.simplefilter("ignore")
        import fabric  # noqa: F401
    made = Datacenter(tmp_path_factory.mktemp("datacenter"))
    yield made
    made.close()


@pytest.fixture
def cloud_job(
    world: World, make_job: Callable[..., Job], stand_ins: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Job]]:
    """A complete run for the provider of the module's `world`, whose worker does that many short steps.

    `world` is a fixture of each provider's own tests. No keeper outlives its test: it would ask for machines that are
    no more.
    """
    made: list[Job] = []
    for name, value in world.environment.items():
        monkeypatch.setenv(name, value)
    hurry(monkeypatch.setattr)
    world.reset()

    def new(steps: int = 10, **more: Any) -> Job:
        stand_in = {name: value for name, value in os.environ.items() if name.startswith("STAND_IN_")}
        env = {**stand_in, "STAND_IN_STEPS": str(steps)}
        plain = {"venv": VENV, "gate": False, "env": env, "poll_seconds": 0.2}
        made.append(make_job(options={**world.options, **plain, **more.pop("options", {})}, **more))
        return made[-1]

    yield new
    for job in made:
        kill_keeper(RunPaths(job.folder))
