"""Runs over SSH: real sshd, real namespaces, stand-ins only for the worker."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dtrain.launch.api import Job
from dtrain.launch.tunnel import known_hosts
from tests.launch.conftest import home, make_job, stand_ins
from tests.ssh.hosts import Host, Network, why_not

__all__ = ["home", "make_job", "stand_ins"]
VENV = str(Path(sys.prefix))


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker has the hosts; without root or sshd every test says so."""
    missing = why_not()
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.xdist_group("ssh"))
            if missing and "hosts" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with warnings.catch_warnings():  # their own imports' warnings, once
        warnings.simplefilter("ignore")
        import fabric  # noqa: F401
    made = Network(tmp_path_factory.mktemp("network"), 2)
    yield made
    made.close()


@pytest.fixture
def hosts(network: Network, home: Path) -> list[Host]:
    """Two hosts that are up, and known."""
    known_hosts().parent.mkdir(parents=True, exist_ok=True)
    known_hosts().write_text("".join(host.known_hosts_line for host in network.hosts))
    return network.hosts


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`launchers.ssh` for some hosts: each with a base of its own, with this environment, no gate."""

    def make(*used: Host, **more: Any) -> dict[str, Any]:
        told = [{"host": host.where, "base": str(tmp_path / f"base {number}")} for number, host in enumerate(used)]
        env = {name: value for name, value in os.environ.items() if name.startswith("STAND_IN_")}
        plain = {"hosts": told, "key": str(used[0].key), "venv": VENV, "gate": False, "env": env, "wait_seconds": 0}
        return {**plain, **more}

    return make


@pytest.fixture
def ssh_job(
    hosts: list[Host], options: Callable[..., dict[str, Any]], make_job: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch, stand_ins: None,
) -> Callable[..., Job]:  # fmt: skip
    """A complete run for the first host, whose worker does that many short steps."""

    def new(steps: int = 10, **more: Any) -> Job:
        monkeypatch.setenv("STAND_IN_STEPS", str(steps))
        told = {**options(hosts[0]), **more.pop("options", {})}
        return make_job(options=told, **more)

    return new
