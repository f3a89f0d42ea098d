"""Rented machines for the tests: network namespaces that boot by running the very user data they were created with.

Each has a real sshd, an address, /root/.ssh, /etc/ssh, /opt and /dev/shm of its own, and ends when it shuts itself
down. It cannot reach any network but the bridge it hangs on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.ssh.hosts import SSHD, ip, new_key

SSHD_CONFIG = """\
Include /etc/ssh/sshd_config.d/*.conf
AuthorizedKeysFile /root/.ssh/authorized_keys
PidFile none
UsePAM no
StrictModes no
Subsystem sftp internal-sftp
MaxStartups 100
"""
METADATA = Path(__file__).with_name("metadata.py")
SHUTDOWN = '#!/bin/sh\necho "$@" >> {folder}/shutdown.said\ntouch {folder}/off\nsleep 60\n'
SYSTEMCTL = (
    "#!/bin/sh\n[ \"$*\" = 'restart ssh' ] || exit 1\nwhile pkill -r DRST -x sshd; do sleep 0.02; done; exec {sshd}\n"
)
"""The old one is gone before the new one listens, as with systemd: sshd tells nobody that it found its port taken."""
BOOT = """\
mount --bind {folder}/root /root/.ssh && mount --bind {folder}/ssh /etc/ssh && mount --bind {folder}/opt /opt
[ -e {folder}/tiny ] && mount -t tmpfs -o size=2m none /opt
mount --bind {folder}/bin /usr/local/sbin && mount -t tmpfs none /dev/shm && hostname {name}
ip addr add 169.254.169.254/32 dev lo && {python} {metadata} {folder} &
{sshd}
sleep {boot_seconds}
sh {folder}/user_data > {folder}/user_data.log 2>&1
touch {folder}/booted
exec sleep infinity
"""
"""The image's sshd is up before user data has run, as on a real machine."""


@dataclass
class Machine:
    id: str
    folder: Path
    address: str
    namespace: str
    link: str
    init: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    switch: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """Its own shutdown and its provider may turn it off at once."""

    @property
    def is_on(self) -> bool:
        return self.init is not None

    def power_off(self) -> None:
        """Every process of it is gone at once."""
        with self.switch:
            if self.init is not None:
                self.init.kill()
                self.init.wait()
                self.init = None
                ip("netns", "del", self.namespace)

    def take_back(self) -> None:
        """Its metadata service tells from now on that it is taken away."""
        (self.folder / "taken").touch()

    def cut(self) -> None:
        ip("link", "set", self.link, "down")

    def run(self, *command: str) -> str:
        """As root on the machine."""
        assert self.init is not None
        first = subprocess.check_output(["pgrep", "-P", str(self.init.pid)], text=True).split()[0]
        inside = ["nsenter", "-t", first, "-p", "-m", "-n", "-u"]
        return subprocess.run([*inside, *command], capture_output=True, text=True).stdout


class Datacenter:
    """Machines on one bridge; all gone when it is closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machines: dict[str, Machine] = {}
        self.on_off: Callable[[str], None] = lambda machine: None
        """Told when a machine has shut itself down."""
        self.boot_seconds = 0.0
        self.tiny_disks = 0
        """So many of the next machines have a disk of 2 MiB."""
        self._count = self._booted = 0
        self._lock = threading.RLock()
        number = os.getpid()
        self.bridge = f"dcl{number}"[:12]
        self.subnet = f"10.{60 + number % 50}.{number // 50 % 250}"
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{self.subnet}.1/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        Path("/run/sshd").mkdir(exist_ok=True)
        Path("/root/.ssh").mkdir(exist_ok=True)
        self._image_key = new_key(folder / "image_key")
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._watch_shutdowns, daemon=True)
        self._watch.start()

    @property
    def address(self) -> str:
        """Of this end of the bridge: what a machine can reach."""
        return f"{self.subnet}.1"

    def free_address(self) -> str:
        with self._lock:
            self._count += 1
            return f"{self.subnet}.{10 + self._count % 240}"

    def boot(self, machine_id: str, address: str, user_data: str) -> Machine:
        with self._lock:
            self._booted += 1
            number = self._booted
        folder = self.folder / f"m{number}"
        for name in ("root", "ssh/sshd_config.d", "opt", "bin"):
            (folder / name).mkdir(parents=True)
        (folder / "ssh" / "sshd_config").write_text(SSHD_CONFIG)
        shutil.copy(self._image_key, folder / "ssh" / "ssh_host_ed25519_key")
        if self.tiny_disks:
            self.tiny_disks -= 1
            (folder / "tiny").touch()
        (folder / "user_data").write_text(user_data)
        _script(folder / "bin" / "shutdown", SHUTDOWN.format(folder=folder))
        _script(folder / "bin" / "systemctl", SYSTEMCTL.format(sshd=SSHD))
        name, link = f"{self.bridge}n{number}", f"dv{os.getpid()}x{number}"[:15]
        machine = Machine(machine_id, folder, address, name, link)
        self._wire(machine)
        boot = BOOT.format(
            folder=folder,
            name=name,
            sshd=SSHD,
            boot_seconds=self.boot_seconds,
            python=sys.executable,
            metadata=METADATA,
        )
        unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--mount"]
        machine.init = subprocess.Popen(
            ["ip", "netns", "exec", name, *unshare, "sh", "-c", boot], stdin=-3, stdout=-3, stderr=-3
        )
        with self._lock:
            self.machines[machine_id] = machine
        return machine

    def _wire(self, machine: Machine) -> None:
        name, link = machine.namespace, machine.link
        ip("netns", "add", name)
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", link, "master", self.bridge, "up")
        ip("-n", name, "addr", "add", f"{machine.address}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")

    def power_off(self, machine_id: str) -> None:
        with self._lock:
            machine = self.machines.get(machine_id)
        if machine is not None:
            machine.power_off()

    def _watch_shutdowns(self) -> None:
        while not self._closed.wait(0.1):
            for machine in list(self.machines.values()):
                if machine.is_on and (machine.folder / "off").exists():
                    machine.power_off()
                    self.on_off(machine.id)

    @property
    def on(self) -> list[Machine]:
        return [machine for machine in self.machines.values() if machine.is_on]

    def close(self) -> None:
        self._closed.set()
        self._watch.join()
        for machine in self.machines.values():
            machine.power_off()
        time.sleep(0.05)
        ip("link", "del", self.bridge)


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
