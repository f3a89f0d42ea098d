"""The launcher contract over a real sshd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from dtrain_launchers.ssh import SshLauncher

from dtrain.launch.api import Job
from tests.launch.launcher_contract import LauncherContract


class TestSsh(LauncherContract):
    @pytest.fixture
    def launcher(self, monkeypatch: pytest.MonkeyPatch) -> SshLauncher:
        monkeypatch.setattr(SshLauncher, "look_seconds", 0.1)
        return SshLauncher()

    @pytest.fixture
    def new_job(self, request: pytest.FixtureRequest) -> Callable[..., Job]:
        made: Callable[..., Job] = request.getfixturevalue("ssh_job")
        return made
