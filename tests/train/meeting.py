"""Where forked ranks meet: a store in a process of its own. It has its port before anybody is told of it, so that no
other program can take it in between."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from dtrain.own_process import die_with_parent


@contextmanager
def meeting() -> Iterator[dict[str, str]]:
    """The environment of ranks that meet there, as torchrun tells them of its own store."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        _keep_store(write)
    os.close(write)
    try:
        with os.fdopen(read) as told:
            port = told.readline().strip()
        yield {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo",
            "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
        }  # fmt: skip
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _keep_store(write: int) -> None:
    die_with_parent()
    try:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(write, f"{store.port}\n".encode())
        os.close(write)
        signal.pause()
    finally:
        os._exit(1)
