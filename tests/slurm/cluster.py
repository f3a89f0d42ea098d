"""A SLURM cluster of two nodes on this machine: real slurmctld, slurmd and munge from the distribution's packages.

Each node has a network, a host name and a process list of its own, so that addresses, interfaces and orphans are what
they are on two machines; killing a node's first process is pulling its plug. Needs root.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.waiting import wait_until

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "unshare")
PACKAGES = "slurm-wlm munge iproute2"
CONF = """\
ClusterName=dtrain
SlurmctldHost={host}({network}.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={base}/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd-%n.pid
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
{accounting}
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldTimeout=30
SlurmdTimeout=5
InactiveLimit=0
MinJobAge={job_age_seconds}
KillWait=4
WaitTime=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
{nodes}
PartitionName=DEFAULT Nodes=ALL MaxTime=1:00:00 DefaultTime=10:00 State=UP
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 Default=YES
PartitionName=hasty PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 Default=NO
PartitionName=high PriorityTier=10 PreemptMode=OFF Default=NO
"""
NODE = (
    "NodeName={name} NodeHostname={name} NodeAddr={address} CPUs=4 Boards=1 SocketsPerBoard=1 CoresPerSocket=4 "
    "ThreadsPerCore=1 RealMemory=64000 Gres=gpu:fake:2 State=UNKNOWN"
)
NAMES = ("slurm1", "slurm2")


def lacking() -> str | None:
    """Why there can be no cluster here."""
    if os.geteuid() != 0:
        return "not root: network namespaces need it"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [program for program in NEEDED if shutil.which(program, path=path) is None]
    return f"{', '.join(missing)} missing: apt-get install {PACKAGES}" if missing else None


def run(*command: str | Path, **more: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return str(done.stdout)


@dataclass
class Cluster:
    base: Path
    names: list[str]
    network: str = "10.78.0"
    bridge: str = "slurmbr0"
    port: int = 16817
    job_age_seconds: int = 300
    """How long the controller remembers an ended job."""
    accounting: str = "AccountingStorageType=accounting_storage/none"
    slurmd: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        return {**os.environ, "SLURM_CONF": str(self.base / "slurm.conf"), "PATH": path}

    def address(self, name: str) -> str:
        return f"{self.network}.{11 + self.names.index(name)}"

    def __call__(self, *command: str) -> str:
        """A SLURM command."""
        return run(*command, env=self.environment)

    # --- its life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.prepare()
        run("slurmctld", "-c", env=self.environment)
        for name in self.names:
            self.boot(name)
        self.wait_idle()

    def prepare(self) -> None:
        """All but SLURM's own daemons."""
        self.remove_leftovers()
        self._write()
        self._network()
        run(
            "munged", "-f", "--num-threads=2", f"--key-file={self.base}/munge/key", f"--socket={self.base}/munge.sock",
            f"--pid-file={self.base}/munged.pid", f"--log-file={self.base}/munge/log",
            f"--seed-file={self.base}/munge/seed", env=self.environment,
        )  # fmt: skip

    def _write(self) -> None:
        for folder in ("state", "spool", "munge"):
            (self.base / folder).mkdir(parents=True)
        self.base.chmod(0o755)
        (self.base / "munge").chmod(0o700)
        (self.base / "munge/key").write_bytes(secrets.token_bytes(128))
        (self.base / "munge/key").chmod(0o400)
        host = os.uname().nodename.split(".")[0]
        nodes = "\n".join(NODE.format(name=name, address=self.address(name)) for name in self.names)
        text = CONF.format(
            base=self.base, host=host, network=self.network, nodes=nodes, port=self.port, accounting=self.accounting,
            job_age_seconds=self.job_age_seconds,
        )  # fmt: skip
        (self.base / "slurm.conf").write_text(text)
        gres = "".join(f"NodeName={name} Name=gpu Type=fake File=/dev/null,/dev/zero\n" for name in self.names)
        (self.base / "gres.conf").write_text(gres)
        (self.base / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    def _network(self) -> None:
        host = os.uname().nodename.split(".")[0]
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "addr", "add", f"{self.network}.1/24", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")
        hosts = ["127.0.0.1 localhost", f"{self.network}.1 {host}", *(f"{self.address(n)} {n}" for n in self.names)]
        for name in self.names:
            run("ip", "netns", "add", name)
            run("ip", "link", "add", f"v{name}", "type", "veth", "peer", "name", "fabric0", "netns", name)
            run("ip", "link", "set", f"v{name}", "master", self.bridge, "up")
            run("ip", "-n", name, "addr", "add", f"{self.address(name)}/24", "dev", "fabric0")
            run("ip", "-n", name, "link", "set", "fabric0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
            folder = Path("/etc/netns") / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts").write_text("\n".join(hosts) + "\n")

    def boot(self, name: str) -> None:
        """Start a node: a new process list whose first process is slurmd."""
        self.slurmd[name] = subprocess.Popen(
            [
                "ip", "netns", "exec", name, "unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc",
                "sh", "-c", f"hostname {name}; exec slurmd -D -N {name}",
            ],
            env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def pull_the_plug(self, name: str) -> None:
        """Every process of the node is gone at once."""
        node = self.slurmd.get(name)
        while node is not None and node.poll() is None:
            subprocess.run(["pkill", "-KILL", "-P", str(node.pid)], check=False)  # its first process: slurmd
            with suppress(subprocess.TimeoutExpired):
                node.wait(0.5)  # until all others went with it

    def stop(self) -> None:
        for name in self.names:
            self.pull_the_plug(name)
        for pid_file in ("slurmctld.pid", "munged.pid"):
            with suppress(OSError, ValueError):
                os.kill(int((self.base / pid_file).read_text()), signal.SIGTERM)
        self._remove_network()
        for name in self.names:
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Of a test session that was killed."""
        for name in self.names:
            told = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
            for pid in told.split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        self._remove_network()

    def _remove_network(self) -> None:
        """Links by name: with its namespace the kernel removes one only some time later."""
        for link in (*(f"v{name}" for name in self.names), self.bridge):
            subprocess.run(["ip", "link", "del", link], capture_output=True, check=False)
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    # --- what tests do with it ----------------------------------------------------------------------------------------

    def states(self) -> list[str]:
        return self("sinfo", "--noheader", "--Node", "--partition=low", "--format=%T").split()

    def wait_idle(self) -> None:
        """No job, and every node ready."""
        wait_until(lambda: self.states() == ["idle"] * len(self.names))

    def clear(self) -> None:
        """Cancel everything, and wake every node."""
        for name in self.names:
            if self.slurmd[name].poll() is not None:
                self.boot(name)
        wait_until(self._cleared)

    def _cleared(self) -> bool:
        """Whether no job is left and every node is ready; else they are told once more: a job that is just being
        requeued, and a node that still completes one, refuse."""
        if self("squeue", "--noheader", "--format=%i") == "" and self.states() == ["idle"] * len(self.names):
            return True
        for command in (
            ["scancel", "--state=PENDING", "--user=root"],
            ["scancel", "--state=RUNNING", "--user=root", "--signal=KILL", "--full"],
            ["scancel", "--user=root"],
            *(["scontrol", "update", f"nodename={name}", "state=resume"] for name in self.names),
        ):
            subprocess.run(command, env=self.environment, capture_output=True, check=False)
        return False

    def inside(self, name: str, *command: str) -> str:
        return run("ip", "netns", "exec", name, *command, env=self.environment)


@contextmanager
def running(base: Path) -> Iterator[Cluster]:
    cluster = Cluster(base, list(NAMES))
    with only_one():
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@contextmanager
def only_one() -> Iterator[None]:
    """Names, addresses and ports are fixed: another test session on this machine waits its turn."""
    with Path(tempfile.gettempdir(), "dtrain-slurm-tests.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield
