"""Hosts for the tests: a real sshd each, in a network namespace with an address of its own, with throw-away keys.

Without the right to make namespaces they are sshd processes on ports of 127.0.0.1: then no link can be cut.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.waiting import wait_until

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
CONFIG = """\
ListenAddress {address}
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {keys}
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
Subsystem sftp internal-sftp
MaxStartups 100
{more}"""


def why_not() -> str | None:
    """What is missing for the tests over SSH; None: nothing."""
    if os.geteuid() != 0:
        return "SSH tests need root (sshd and network namespaces)"
    if not os.path.exists(SSHD):
        return "SSH tests need sshd: apt-get install openssh-server iproute2"
    return None


@contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """A file system without a free byte, for as long as the context lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], check=True)
    try:
        (folder / "filler").write_bytes(bytes(16 << 10))
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def remove_network(namespace: str, link: str) -> None:
    """Both by name: with its namespace alone the kernel removes the link some time later, and its name stays taken."""
    ip("link", "del", link)
    ip("netns", "del", namespace)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def new_key(path: Path) -> Path:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "dtrain-test", "-f", str(path)]
    subprocess.run(command, check=True, input=b"y\n", capture_output=True)
    return path


@dataclass
class Host:
    """One machine: its address, its sshd, its end of a link."""

    folder: Path
    address: str
    port: int
    key: Path
    namespace: str | None
    link: str = ""
    full_disk: Path | None = None
    """A folder of it that takes no byte."""
    more: str = ""
    """Lines of sshd's configuration."""
    init: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    """Process 1 of the host: its processes do not see those of another, and go with it."""
    server: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def where(self) -> str:
        return f"root@{self.address}:{self.port}"

    @property
    def known_hosts_line(self) -> str:
        kind, data = self.host_key.split()[:2]
        name = self.address if self.port == 22 else f"[{self.address}]:{self.port}"
        return f"{name} {kind} {data}\n"

    @property
    def host_key(self) -> str:
        return (self.folder / "host_key.pub").read_text().strip()

    def up(self) -> None:
        """Start sshd and wait until it listens."""
        config = self.folder / "sshd_config"
        keys = self.key.with_suffix(".pub")
        config.write_text(
            CONFIG.format(address=self.address, port=self.port, folder=self.folder, keys=keys, more=self.more)
        )
        log = (self.folder / "sshd.log").open("ab")
        if self.namespace and self.init is None:
            self._switch_on(self.namespace)
        self.server = subprocess.Popen([*self._inside(), SSHD, "-D", "-e", "-f", str(config)], stderr=log, stdin=-3)
        log.close()
        wait_until(self._answers)

    def _answers(self) -> bool:
        assert self.server is None or self.server.poll() is None, (self.folder / "sshd.log").read_text()
        with suppress(OSError):
            socket.create_connection((self.address, self.port), timeout=1).close()
            return True
        return False

    def _switch_on(self, namespace: str) -> None:
        """The host's first process, which sleeps once the host has its own name, process list and file systems."""
        unshared = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts"]
        name = f"hostname {namespace}; exec sleep infinity"
        self.init = subprocess.Popen(["ip", "netns", "exec", namespace, *unshared, "sh", "-c", name], stdin=-3)
        wait_until(lambda: self.init is None or self.init.poll() is not None or self._first_process())
        assert self._first_process(), f"{namespace} did not come up"

    def _first_process(self) -> str:
        """Its pid; empty while it does not sleep yet."""
        assert self.init is not None
        found = subprocess.run(["pgrep", "-P", str(self.init.pid), "-x", "sleep"], capture_output=True, text=True)
        return found.stdout.strip()

    def _inside(self) -> list[str]:
        """What runs a command on the host."""
        return ["nsenter", "-t", self._first_process(), "-p", "-m", "-n", "-u"] if self.init else []

    def power_off(self) -> None:
        """Every process of the host is gone at once."""
        if self.init is not None:
            subprocess.run(["pkill", "-KILL", "-P", str(self.init.pid)], check=False)  # its first process
            self.init.wait()  # until all others went with it
            self.init = None
        self.down()

    def down(self) -> None:
        """End sshd and the sessions it has open; what was started detached lives on."""
        if self.server is None:
            return
        if self.init is not None:
            subprocess.run([*self._inside(), "pkill", "-KILL", "-x", "sshd"], check=False)
        subprocess.run(["pkill", "-KILL", "-P", str(self.server.pid)], check=False)
        self.server.kill()
        self.server.wait()
        self.server = None

    def cut(self) -> None:
        ip("link", "set", self.link, "down")

    def mend(self) -> None:
        ip("link", "set", self.link, "up")

    def another_host_key(self) -> None:
        """As after somebody set the machine up anew, or stands in between."""
        self.down()
        for name in ("host_key", "host_key.pub"):
            (self.folder / name).unlink()
        new_key(self.folder / "host_key")
        self.up()


class Network:
    """Hosts on a bridge of their own; all gone when it is closed."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.key = new_key(folder / "client_key")
        Path("/run/sshd").mkdir(exist_ok=True)
        number = os.getpid()
        self.bridge = f"dsb{number}"
        self.subnet = f"10.{120 + number % 100}.{number // 100 % 250}"
        self.hosts: list[Host] = []
        self.namespaces = self._bridged()
        self.disks = ExitStack()
        full = self.disks.enter_context(full_disk(folder / "full disk"))  # before hosts get file systems of their own
        try:
            for place in range(count):
                self.hosts.append(self._host(place, full))
            for host in self.hosts:
                host.up()
        except BaseException:
            self.close()
            raise

    def _bridged(self) -> bool:
        try:
            ip("link", "add", self.bridge, "type", "bridge")
        except (OSError, subprocess.CalledProcessError):
            return False
        ip("addr", "add", f"{self.subnet}.1/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        return True

    def _host(self, place: int, full: Path) -> Host:
        folder = self.folder / f"host{place}"
        folder.mkdir()
        new_key(folder / "host_key")
        if not self.namespaces:
            return Host(folder, "127.0.0.1", free_port(), self.key, None, full_disk=full)
        name, link, address = f"{self.bridge}n{place}", f"{self.bridge}v{place}", f"{self.subnet}.{11 + place}"
        ip("netns", "add", name)
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", link, "master", self.bridge, "up")
        ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
        return Host(folder, address, 22, self.key, name, link, full)

    def close(self) -> None:
        for host in self.hosts:
            host.power_off()
            if host.namespace:
                remove_network(host.namespace, host.link)
        if self.namespaces:
            ip("link", "del", self.bridge)
        self.disks.close()
