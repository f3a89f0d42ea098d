"""With slurmdbd: what sacct knows when the controller has forgotten the job, and accounts that do not exist."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dtrain_launchers.slurm import SlurmLauncher

from dtrain.errors import BadInput
from dtrain.launch.api import Job
from dtrain.paths import RunPaths
from tests.slurm.cluster import Cluster, lacking, run
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]
PORT = 16821
DBD = """\
AuthType=auth/munge
AuthInfo=socket={base}/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={base}/slurmdbd.log
PidFile={base}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=x
StorageLoc=slurm_acct_db
"""
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={base}/munge.sock
AccountingStorageEnforce=associations"""
SQL = (
    "create database slurm_acct_db; create user 'slurm'@'localhost' identified by 'x'; "
    "grant all on slurm_acct_db.* to 'slurm'@'localhost'"
)


@contextmanager
def database(base: Path) -> Iterator[str]:
    """MariaDB behind a socket of its own."""
    socket = f"{base}/sql.sock"
    run("mariadb-install-db", "--no-defaults", "--auth-root-authentication-method=normal", f"--datadir={base}/sql",
        "--user=root")  # fmt: skip
    server = subprocess.Popen(
        ["mariadbd", "--no-defaults", "--user=root", f"--datadir={base}/sql", f"--socket={socket}",
         f"--pid-file={base}/sql.pid", "--skip-networking", "--innodb-buffer-pool-size=64M"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    client = ["mariadb", "--no-defaults", "-S", socket, "-uroot", "-e"]
    try:
        wait_until(lambda: subprocess.run([*client, "select 1"], capture_output=True).returncode == 0)
        run(*client, SQL)
        yield socket
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def accounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    path = os.environ["PATH"] + ":/usr/sbin"
    missing = [one for one in ("slurmdbd", "mariadbd", "mariadb-install-db") if shutil.which(one, path=path) is None]
    why = lacking() or (f"{missing} missing: apt-get install slurmdbd mariadb-server" if missing else None)
    if why is not None:
        pytest.skip(f"NO SLURM ACCOUNTING, its tests do not run: {why}")
    base = tmp_path_factory.mktemp("accounted")
    cluster = Cluster(
        base, ["acct1"], "10.79.0", "acctbr0", port=16819, job_age_seconds=2,
        accounting=ACCOUNTING.format(port=PORT, base=base),
    )  # fmt: skip
    (base / "slurmdbd.conf").write_text(DBD.format(base=base, port=PORT))
    (base / "slurmdbd.conf").chmod(0o600)
    with database(base) as socket:
        daemons = []
        try:
            cluster.prepare()
            env = {**cluster.environment, "MYSQL_UNIX_PORT": socket}
            daemons.append(subprocess.Popen(["slurmdbd", "-D"], env=env, stderr=subprocess.DEVNULL))
            wait_until(lambda: answers(cluster))
            run("sacctmgr", "-i", "add", "cluster", "dtrain", env=cluster.environment)
            run("sacctmgr", "-i", "add", "account", "proj", env=cluster.environment)
            run("sacctmgr", "-i", "add", "user", "root", "account=proj", env=cluster.environment)
            run("slurmctld", "-c", env=cluster.environment)
            cluster.boot("acct1")
            cluster.wait_idle()
            yield cluster
        finally:
            cluster.stop()
            time.sleep(0.5)  # the controller says good-bye to slurmdbd
            for daemon in daemons:
                daemon.terminate()
                daemon.wait()


def answers(cluster: Cluster) -> bool:
    asked = subprocess.run(["sacctmgr", "-n", "show", "cluster"], env=cluster.environment, capture_output=True)
    return asked.returncode == 0


@pytest.fixture
def submitted(
    accounted: Cluster, make_job: Callable[..., Job], stand_ins: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Job]:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, accounted.environment[name])
    return make_job


def test_what_sacct_knows(accounted: Cluster, submitted: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs whose exit.json is gone, and which the controller has forgotten."""
    monkeypatch.setenv("STAND_IN_STEPS", "5")
    launcher = SlurmLauncher()
    done, held = submitted(), submitted(options={"extra": "#SBATCH --hold"})
    handles = [launcher.submit(job, launcher.render(job)) for job in (done, held)]
    launcher.cancel(handles[1])
    wait_until(RunPaths(done.folder).exit.exists)
    for job in (done, held):
        RunPaths(job.folder).exit.unlink()
    wait_until(lambda: accounted("squeue", "--noheader", "--states=all") == "")
    states = {handle.run_id: launcher.status(handle) for handle in handles}
    assert (states[done.run_id].state, "COMPLETED" in states[done.run_id].reason) == ("lost", True)
    assert (states[held.run_id].state, states[held.run_id].exit_code) == ("interrupted", 75)
    assert "CANCELLED" in states[held.run_id].reason


def test_an_account_that_does_not_exist(accounted: Cluster, submitted: Callable[..., Job]) -> None:
    launcher = SlurmLauncher()
    assert launcher.check(submitted(options={"account": "proj"})) == []
    with pytest.raises(BadInput, match="SLURM refuses it: Invalid account") as caught:
        launcher.check(submitted(options={"account": "nobody"}))
    assert (caught.value.key, caught.value.value) == ("launchers.slurm.account", "nobody")
    assert "sacctmgr" in str(caught.value.fix)
