"""A way to another machine over SSH: commands with bytes in and out, and files.

fabric finds the user's SSH configuration and keys. The host keys are ours to judge: fabric itself trusts anybody.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrain import paths
from dtrain.errors import LauncherRefused, PartMissing, Unreachable

if TYPE_CHECKING:
    from fabric import Connection
    from paramiko import Channel, PKey, SFTPClient

CHUNK_BYTES = 1 << 20
RETRY_SECONDS = 0.3


@dataclass(frozen=True)
class Host:
    """A machine one can log in to."""

    address: str
    user: str | None = None
    port: int | None = None
    """None: what the user's SSH configuration says, else 22."""
    key: str | None = None
    """A private key's file; None: the user's agent and default keys."""
    host_key: str | None = None
    """`ssh-ed25519 AAAA…`: the only key the host may show; None: what the known_hosts files say."""

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.user + '@' if self.user else ''}{address}{f':{self.port}' if self.port else ''}"


@dataclass(frozen=True)
class Trust:
    """Which host keys are believed, and how long a host may take to answer."""

    accept_new_host_keys: bool = False
    """A host that was never seen: its key is written down instead of refused. A changed key is always refused."""
    connect_seconds: float = 10.0
    wait_seconds: float = 10.0
    """How long to knock again at a host that does not answer yet: its sshd may be coming up."""


@dataclass(frozen=True)
class Answer:
    """What a command gave back."""

    code: int
    out: bytes
    err: bytes


def known_hosts() -> Path:
    """The host keys dtrain was shown and believed, beside the user's own known_hosts."""
    return paths.home() / "ssh" / "known_hosts"


def require_fabric() -> None:
    """PartMissing (exit 4) with the pip command, where the extra is not installed."""
    import importlib.util

    if importlib.util.find_spec("fabric") is None:
        raise PartMissing.of("fabric", "ssh", "a launcher that logs in to other machines")


class Tunnel:
    """One host, logged in to when it is first needed, and again after the line was cut. Safe for several threads."""

    def __init__(self, host: Host, trust: Trust) -> None:
        self.host = host
        self.trust = trust
        self._lock = threading.RLock()
        self._connection: Connection | None = None

    def run(self, command: Sequence[str], sent: bytes = b"", timeout_seconds: float = 60.0) -> Answer:
        """Run a command to its end. Unreachable when there is no line, or no answer in time; it may have run then."""
        with self._told():
            channel = self._open().create_session()
            with contextlib.closing(channel):
                channel.settimeout(timeout_seconds)
                channel.exec_command(shlex.join(command))
                return _exchange(channel, sent, timeout_seconds)

    @contextlib.contextmanager
    def files(self) -> Iterator[SFTPClient]:
        """An SFTP session of its own."""
        with self._told():
            sftp = self._open().client.open_sftp()
            channel = sftp.get_channel()
            assert channel is not None
            channel.settimeout(60.0)
            with contextlib.closing(sftp):
                yield sftp

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(Exception):  # the line may be cut already
                    self._connection.close()
                self._connection = None

    def _open(self) -> Connection:
        deadline = time.monotonic() + self.trust.wait_seconds
        with self._lock:
            while True:
                try:
                    return self._connected()
                except Unreachable:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(RETRY_SECONDS)

    def _connected(self) -> Connection:
        if self._connection is None or not self._connection.is_connected:
            self.close()
            connection = _connection_to(self.host, self.trust)
            with self._told():
                connection.open()
            self._connection = connection
        return self._connection

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """SSH's failures in our words. A cut line is forgotten, so that the next call tries a new one."""
        require_fabric()
        import paramiko

        try:
            yield
        except paramiko.BadHostKeyException as error:
            raise _changed_key(self.host, error.key) from None
        except paramiko.AuthenticationException as error:
            raise LauncherRefused(
                f"{self.host} does not let us in: {error}", key="launchers.ssh.hosts", value=str(self.host),
                fix=f"try `ssh {_as_typed(self.host)}`; say the key as key: PATH",
            ) from None  # fmt: skip
        except paramiko.sftp.SFTPError as error:
            raise LauncherRefused(f"{self.host}: {error}") from None
        except (paramiko.SSHException, OSError, EOFError) as error:
            self.close()
            raise Unreachable(f"{self.host} cannot be reached: {_reason(error)}", value=str(self.host)) from None


class Lines:
    """The tunnels of one client, one for each host."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tunnels: dict[tuple[Host, Trust], Tunnel] = {}

    def to(self, host: Host, trust: Trust) -> Tunnel:
        with self._lock:
            return self._tunnels.setdefault((host, trust), Tunnel(host, trust))

    def close(self) -> None:
        for tunnel in self._tunnels.values():
            tunnel.close()


def _exchange(channel: Channel, sent: bytes, timeout_seconds: float) -> Answer:
    """Send, then read both streams to their end and the exit code."""
    errors: list[bytes] = []

    def listen() -> None:
        with contextlib.suppress(TimeoutError):
            errors.extend(_all_of(channel.recv_stderr))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    channel.sendall(sent)
    channel.shutdown_write()
    out = b"".join(_all_of(channel.recv))
    listener.join(timeout_seconds)
    if not channel.status_event.wait(timeout_seconds):
        raise TimeoutError(f"no exit code within {timeout_seconds:g} s")
    if channel.exit_status < 0:  # paramiko's word for: the line went before the code came
        raise EOFError("the connection was closed before the answer")
    return Answer(channel.exit_status, out, b"".join(errors))


def _all_of(receive: Any) -> Iterator[bytes]:
    while chunk := receive(CHUNK_BYTES):
        yield chunk


def _reason(error: BaseException) -> str:
    """One line: paramiko lists every address it tried, and some errors have no words."""
    inner = getattr(error, "errors", None)
    if inner:
        error = next(iter(inner.values()))
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(words).splitlines()[0]


def _connection_to(host: Host, trust: Trust) -> Connection:
    from fabric import Connection

    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # its threads would print tracebacks of cut lines
    keys = {"key_filename": str(Path(host.key).expanduser())} if host.key else {}
    timeouts = {"banner_timeout": trust.connect_seconds, "auth_timeout": trust.connect_seconds}
    connection = Connection(
        host.address, user=host.user, port=host.port, connect_timeout=trust.connect_seconds,
        connect_kwargs={**keys, **timeouts},
    )  # fmt: skip
    _pin(connection, host, trust)
    return connection


def _pin(connection: Connection, host: Host | None, trust: Trust) -> None:
    """Only known keys are believed, on every hop on the way there."""
    import paramiko

    client = connection.client
    given = host.host_key if host is not None else None
    if given is not None:
        kind, data = given.split()[:2]
        named = connection.host if connection.port == 22 else f"[{connection.host}]:{connection.port}"
        client.get_host_keys().add(named, kind, paramiko.PKey.from_type_string(kind, base64.b64decode(data)))
    else:
        client.load_system_host_keys()
        if known_hosts().exists():
            client.load_host_keys(str(known_hosts()))
    client.set_missing_host_key_policy(Pinned(connection, trust.accept_new_host_keys and given is None))
    if hasattr(connection.gateway, "client"):
        _pin(connection.gateway, None, trust)


class Pinned:
    """What SSHClient asks about a host whose key nobody wrote down (paramiko's MissingHostKeyPolicy)."""

    def __init__(self, connection: Connection, accept: bool) -> None:
        self.connection = connection
        self.accept = accept

    def missing_host_key(self, client: object, hostname: str, key: PKey) -> None:
        if self.accept:
            remember(hostname, key)
            return
        typed = f"ssh {self.connection.user}@{self.connection.host} -p {self.connection.port}"
        raise LauncherRefused(
            f"{hostname} shows a host key that nobody vouched for: {key.get_name()} {fingerprint(key)}",
            key="launchers.ssh.hosts", value=hostname,
            fix=f"compare the fingerprint, then `{typed}` once, or add host_key: to the host; "
            "launchers.ssh.accept_new_host_keys: true believes it unseen",
        )  # fmt: skip


def remember(hostname: str, key: PKey) -> None:
    """Write a host's key into our known_hosts; appended in one write, so two clients do not hurt each other."""
    known_hosts().parent.mkdir(parents=True, exist_ok=True)
    with known_hosts().open("ab") as stream:
        stream.write(f"{hostname} {key.get_name()} {key.get_base64()}\n".encode())


def fingerprint(key: PKey) -> str:
    """As OpenSSH prints it."""
    digest = hashlib.sha256(key.asbytes()).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _changed_key(host: Host, shown: PKey) -> LauncherRefused:
    return LauncherRefused(
        f"the host key of {host} has CHANGED: it shows {shown.get_name()} {fingerprint(shown)}. Somebody may stand in "
        "between, or the machine was set up anew",
        key="launchers.ssh.hosts", value=str(host),
        fix=f"if it was set up anew, take its line out of {known_hosts()} or ~/.ssh/known_hosts",
    )  # fmt: skip


def _as_typed(host: Host) -> str:
    port = f"-p {host.port} " if host.port else ""
    return port + (f"{host.user}@{host.address}" if host.user else host.address)
