"""A login node of the test cluster: a real sshd in a namespace on the cluster's network, with SLURM's commands."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.slurm.cluster import Cluster, run
from tests.ssh.hosts import Host, full_disk, new_key

NAME = "slurmlogin"
LINK = f"v{NAME}"
Login = Host


@contextmanager
def a_login_node(cluster: Cluster, folder: Path) -> Iterator[Login]:
    Path("/run/sshd").mkdir(exist_ok=True)
    address = f"{cluster.network}.10"
    _remove()
    disks = ExitStack()
    try:
        disks.enter_context(
            full_disk(cluster.base / "full disk")
        )  # before its processes get a file system of their own
        _network(cluster, address)
        new_key(folder / "host_key")
        environment = f"SetEnv SLURM_CONF={cluster.base / 'slurm.conf'}\n"
        login = Host(folder, address, 22, new_key(folder / "client_key"), NAME, LINK, more=environment)
        login.up()
        try:
            yield login
        finally:
            login.power_off()
    finally:
        _remove()
        disks.close()


def _network(cluster: Cluster, address: str) -> None:
    run("ip", "netns", "add", NAME)
    run("ip", "link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", NAME)
    run("ip", "link", "set", LINK, "master", cluster.bridge, "up")
    run("ip", "-n", NAME, "addr", "add", f"{address}/24", "dev", "eth0")
    run("ip", "-n", NAME, "link", "set", "eth0", "up")
    run("ip", "-n", NAME, "link", "set", "lo", "up")
    hosts = Path("/etc/netns") / NAME
    hosts.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path("/etc/netns") / cluster.names[0] / "hosts", hosts / "hosts")


def _remove() -> None:
    subprocess.run(["ip", "link", "del", LINK], check=False, capture_output=True)  # its namespace takes longer to go
    subprocess.run(["ip", "netns", "del", NAME], check=False, capture_output=True)
    shutil.rmtree(Path("/etc/netns") / NAME, ignore_errors=True)
