"""Which of this machine's addresses and network interfaces leads to another machine. Standard library, Linux."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dtrain.errors import RunFailed

_SIOCGIFADDR = 0x8915  # linux/sockios.h
_DISCARD_PORT = 9


@dataclass(frozen=True)
class Link:
    """This machine's end of a route."""

    address: str
    interface: str


def link_towards(host: str) -> Link:
    """The link over which this machine reaches `host` (a name or an address), as the kernel's routing table has it.

    RunFailed when the name cannot be resolved or there is no route. Nothing is sent: connecting a datagram socket only
    looks the route up. Towards one of its own addresses it is the interface that holds it, not the loopback.
    """
    try:
        family, _, _, _, where = socket.getaddrinfo(host, _DISCARD_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(where)
            address = str(probe.getsockname()[0])
    except OSError as error:
        raise RunFailed(f"{socket.gethostname()} has no route to {host}: {error.strerror or error}") from None
    interface = interface_of(address)
    if interface is None:
        raise RunFailed(
            f"no network interface of {socket.gethostname()} holds {address}, from which it reaches {host}",
            fix="set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME under launchers.NAME.env",
        )
    return Link(address, interface)


def interface_of(address: str) -> str | None:
    """The interface that holds an address of this machine."""
    held = _holders_v6() if ":" in address else _holders_v4()
    return held.get(address)


def _holders_v4() -> dict[str, str]:
    held = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no IPv4 address
                told = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                held[socket.inet_ntoa(told[20:24])] = name
    return held


def _holders_v6() -> dict[str, str]:
    """Lines of /proc/net/if_inet6: 32 hex digits, index, prefix, scope, flags, name."""
    held = {}
    with suppress(FileNotFoundError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            digits, *_, name = line.split()
            held[str(ipaddress.IPv6Address(int(digits, 16)))] = name
    return held


def free_port(address: str) -> int:
    """A TCP port of this machine that nothing listens on now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
