"""A run is attached to from a machine that did not start it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from dtrain_launchers.ssh import SshLauncher

from dtrain.launch.api import Job
from dtrain.launch.tunnel import known_hosts
from tests.launch.conftest import left_over
from tests.ssh.hosts import Host
from tests.waiting import PATIENCE_SECONDS, wait_until


class Elsewhere:
    """Another machine of the same person: its own home, registry and key."""

    def __init__(self, folder: Path, host: Host) -> None:
        self.folder = folder
        (folder / ".ssh").mkdir(parents=True)
        shutil.copy(host.key, folder / ".ssh" / "id_ed25519")
        (folder / "data" / "ssh").mkdir(parents=True)
        shutil.copy(known_hosts(), folder / "data" / "ssh" / "known_hosts")

    def start(self, *words: str) -> subprocess.Popen[str]:
        env = {**os.environ, "HOME": str(self.folder), "DTRAIN_HOME": str(self.folder / "data")}
        return subprocess.Popen(
            [sys.executable, "-m", "dtrain", *words], cwd=self.folder, env=env, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, *words: str, code: int = 0) -> str:
        process = self.start(*words)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == code, out + err
        return out + err


@pytest.mark.slow
def test_attach_from_another_machine_and_stop_it_from_there(
    ssh_job: Callable[..., Job], hosts: list[Host], tmp_path: Path
) -> None:
    launcher = SshLauncher()
    job = ssh_job(100_000)
    handle = launcher.submit(job, launcher.render(job))
    there = handle.data["machines"][0]["base"]
    elsewhere = Elsewhere(tmp_path / "elsewhere", hosts[0])
    where = f"root@{hosts[0].address}:{hosts[0].port}"
    assert "there is no run of that name" in elsewhere("attach", f"{where}:20200101-000000-none", code=2)
    attached = elsewhere.start("attach", f"{where}:{there}/runs/{job.run_id}")
    wait_until(lambda: list(elsewhere.folder.glob("runs/*/dtrain/metrics.jsonl")))
    assert "interrupted" in elsewhere("stop", job.run_id)
    out, err = attached.communicate(timeout=PATIENCE_SECONDS)
    assert attached.returncode == 75, out + err
    assert "Interrupted: stopped on request" in out + err
    told = json.loads(elsewhere("status", job.run_id, "--json"))
    assert (told["state"], told["exit_code"]) == ("interrupted", 75)
    assert launcher.status(handle).state == "interrupted"
    assert left_over(job.run_id) == []
