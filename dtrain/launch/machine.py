"""A machine that is reached over SSH: what it is, dtrain's environment on it, and what its agent is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dtrain import __version__
from dtrain.errors import BadInput, DtrainError, LauncherRefused, RunFailed, Unreachable
from dtrain.launch import bundle_environment, bundle_wheel, probe
from dtrain.launch.bundle import Shipped
from dtrain.launch.doctor import LEAST_PYTHON
from dtrain.launch.tunnel import Answer, Host, Tunnel

DEFAULT_BASE = "~/.dtrain"
INSTALL_SECONDS = 3600.0
"""For pip on a slow line: torch with CUDA is some gigabytes."""
UPLOAD_BYTES = 1 << 20


@dataclass(frozen=True)
class Machine:
    """Where dtrain works on a host."""

    host: Host
    base: str = DEFAULT_BASE
    """dtrain's folder there: environments, shipped files, runs."""
    python: str = "python3"
    """The interpreter that makes the environment, Python 3.11 or newer."""
    venv: str | None = None
    """An environment to use as it is; dtrain is not installed then."""
    meets_at: str | None = None
    """Where the other machines of a run reach it; None: where the client does."""

    def run_folder(self, run_id: str) -> str:
        return f"{self.base}/runs/{run_id}"

    @property
    def environment(self) -> str:
        return self.venv or f"{self.base}/env/{bundle_wheel.name()}"

    @property
    def agent_python(self) -> str:
        return f"{self.environment}/bin/python"

    @property
    def first_python(self) -> str:
        """What answers before an environment is made."""
        return self.agent_python if self.venv else self.python


@dataclass(frozen=True)
class Seen:
    """What a machine said it is."""

    base: str
    """Its own path of `Machine.base`, `~` written out."""
    home: str
    python: str
    version: tuple[int, ...]
    platform: str
    free_bytes: int
    writable: bool
    gpus: tuple[Mapping[str, str], ...]

    @property
    def gpu_memory_gib(self) -> list[float]:
        return [float(gpu["memory_mib"]) / 1024 if gpu["memory_mib"].isdigit() else 0.0 for gpu in self.gpus]


_ANY_HOME = 'case $0 in "~/"*) set -- "$HOME/${0#??}" "$@" ;; *) set -- "$0" "$@" ;; esac; exec "$@"'
"""The first word of a command may begin with `~/`, whatever shell the user logs in to."""


LOGIN_SHELL = ("bash", "-l", "-c", 'exec "$0" "$@"')
"""In front of a command: with the PATH that a person has there after logging in."""


class Remote:
    """A machine and the line to it."""

    def __init__(self, machine: Machine, tunnel: Tunnel, shell: tuple[str, ...] = ()) -> None:
        """`shell` stands in front of dtrain's own modules there, such as LOGIN_SHELL."""
        self.machine = machine
        self.tunnel = tunnel
        self.shell = shell

    @property
    def name(self) -> str:
        return str(self.machine.host)

    def probe(self) -> Seen:
        """What it is. LauncherRefused when there is no Python to ask."""
        script = Path(probe.__file__).read_bytes()
        answer = self._shell((self.machine.first_python, "-", self.machine.base), script)
        if answer.code != 0:
            raise LauncherRefused(
                f"{self.name}: {self.machine.first_python} does not answer there: {_last_line(answer)}",
                key="launchers.ssh.hosts", fix="install Python 3.11, or say where it is: python: /usr/bin/python3.11",
            )  # fmt: skip
        told = _last_json(answer)
        return Seen(**{**told, "version": tuple(told["version"]), "gpus": tuple(told["gpus"])})

    def ask(self, verb: str, told: Mapping[str, Any], timeout_seconds: float = 60.0) -> dict[str, Any]:
        """The agent's answer; its errors are raised here. Each verb may be asked twice, so a line that was cut is
        tried once more. Unreachable when that fails too."""
        return self.module("dtrain.launch.agent", told, timeout_seconds, verb)

    def module(self, name: str, told: Mapping[str, Any], timeout_seconds: float, *words: str) -> dict[str, Any]:
        """Run one of dtrain's modules there: JSON in, its last line is JSON."""
        command = (*self.shell, self.machine.agent_python, "-P", "-m", name, *words)
        sent = json.dumps(told).encode()
        try:
            answer = self.tunnel.run(command, sent, timeout_seconds)
        except Unreachable:
            answer = self.tunnel.run(command, sent, timeout_seconds)
        if answer.code != 0 or (found := _last_json(answer)) is None:
            raise LauncherRefused(
                f"{self.name}: dtrain does not answer in {self.machine.environment}: {_last_line(answer)}",
                key="launchers.ssh.hosts", fix="pip install dtrain there, or leave venv out: then it is made",
            )  # fmt: skip
        if "error" in found:
            raise _their_error(self.name, found["error"])
        return dict(found)

    def make_environment(self, extras: tuple[str, ...]) -> None:
        """dtrain and its parts, pinned, in a place named by the sources; taken as it is where it is there already."""
        if self.machine.venv is not None:
            self._refuse_another_version()
            return
        folder = f"{self.machine.base}/wheels"
        wheel, pins = bundle_wheel.wheel(), bundle_wheel.constraints()
        there = f"{folder}/{bundle_wheel.name()}/{wheel.name}"
        self._run_checked("mkdir", "-p", str(Path(there).parent))
        with self.tunnel.files() as sftp:
            sftp.put(str(wheel), there)
            with sftp.open(f"{folder}/{bundle_wheel.name()}/constraints.txt", "w") as stream:
                stream.write(pins.encode())
        script = Path(bundle_environment.__file__).read_bytes()
        words = (
            "-",
            self.machine.environment,
            there,
            f"[{','.join(extras)}]" if extras else "",
            f"{Path(there).parent}/constraints.txt",
        )
        answer = self._shell((self.machine.python, *words), script, INSTALL_SECONDS)
        if answer.code != 0:
            said = "\n  ".join(answer.out.decode(errors="replace").strip().splitlines()) or _last_line(answer)
            raise LauncherRefused(
                f"{self.name}: the environment cannot be made\n  {said}", file=self.machine.environment,
                fix="it needs python3-venv and a line to a package index there; or make one by hand and say venv: PATH",
            )  # fmt: skip

    def send(self, files: list[Shipped]) -> int:
        """The files that the machine lacks, into its store; what came half is completed. The bytes that were sent."""
        wanted = {one.sha256: one for one in files}
        if not wanted:
            return 0
        missing = self.ask("files", {"base": self.machine.base, "digests": list(wanted)}, 600.0)["missing"]
        sent = 0
        if missing:
            with self.tunnel.files() as sftp:
                for digest, there in missing.items():
                    sent += _upload(sftp, wanted[digest], f"{self.machine.base}/files/.{digest}.part", int(there))
        return sent

    def _refuse_another_version(self) -> None:
        found = self.ask("hello", {})["dtrain"]
        if found != __version__:
            raise LauncherRefused(
                f"{self.name}: {self.machine.environment} holds dtrain {found}, and this is {__version__}",
                fix=f"pip install dtrain=={__version__} there, or leave venv out",
            )  # fmt: skip

    def _run_checked(self, *command: str) -> None:
        answer = self.tunnel.run(command)
        if answer.code != 0:
            raise LauncherRefused(f"{self.name}: {_last_line(answer)}")

    def _shell(self, command: tuple[str, ...], sent: bytes, timeout_seconds: float = 60.0) -> Answer:
        return self.tunnel.run(("sh", "-c", _ANY_HOME, *command), sent, timeout_seconds)


def settled(machine: Machine, seen: Seen) -> Machine:
    """With the paths as they are there, `~` written out."""
    venv = machine.venv
    if venv is not None and venv.startswith("~/"):
        venv = seen.home + venv.removeprefix("~")
    return replace(machine, base=seen.base, venv=venv)


_EACH_THAT_IS_NOT = 'for path; do [ -e "$path" ] || printf "%s\\n" "$path"; done'


def lacking(remote: Remote, paths: Sequence[str]) -> list[str]:
    """A line for each path that the run names and that is neither here nor there."""
    if not paths:
        return []
    answer = remote.tunnel.run(("sh", "-c", _EACH_THAT_IS_NOT, "sh", *paths))
    return [f"{path} is neither here nor on {remote.name}" for path in answer.out.decode().splitlines()]


def problems(remote: Remote, seen: Seen) -> list[str]:
    """What of a machine stands in the way of any run."""
    found = []
    if seen.platform != "linux":
        found.append(f"{remote.name} runs {seen.platform}: dtrain trains on Linux")
    if tuple(seen.version) < LEAST_PYTHON:
        has, least = ".".join(map(str, seen.version)), ".".join(map(str, LEAST_PYTHON))
        found.append(
            f"{remote.name} has Python {has} as {remote.machine.first_python}: {least} is needed (python: PATH)"
        )
    if not seen.writable:
        found.append(f"{remote.name}: {seen.base} cannot be written (launchers.ssh.base)")
    return found


def for_anybody(machine: Machine) -> Machine:
    """Without what is one client's own: its private key, and which environment its sources stand for."""
    return replace(machine, host=replace(machine.host, key=None), venv=machine.environment)


def as_json(machine: Machine) -> dict[str, Any]:
    return asdict(machine)


def from_json(told: Mapping[str, Any]) -> Machine:
    return Machine(Host(**told["host"]), told["base"], told["python"], told["venv"], told.get("meets_at"))


def _upload(sftp: Any, one: Shipped, there: str, begun_bytes: int) -> int:
    """Go on where the last try ended; a part that is too long belongs to nobody."""
    begun = begun_bytes if begun_bytes < one.size_bytes else 0
    with one.local.open("rb") as source, sftp.open(there, "ab" if begun else "wb") as target:
        target.set_pipelined(True)
        source.seek(begun)
        while chunk := source.read(UPLOAD_BYTES):
            target.write(chunk)
    return one.size_bytes - begun


def _last_json(answer: Answer) -> Any:
    lines = answer.out.decode(errors="replace").strip().splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError):
        return None


def _last_line(answer: Answer) -> str:
    lines = (answer.err or answer.out).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit code {answer.code}"


def _their_error(name: str, told: Mapping[str, Any]) -> DtrainError:
    kind = {2: BadInput, 5: LauncherRefused}.get(told["code"], RunFailed)
    fields = {key: value for key, value in told.items() if key in ("file", "line", "key", "value", "allowed", "fix")}
    return kind(f"{name}: {told['message']}", **fields)
