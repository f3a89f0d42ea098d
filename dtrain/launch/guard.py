"""The last resort: a process that outlives a killed supervisor just long enough to end what it left behind.

Ranks ask the kernel to die with their parent, but what they started (data workers, compilers) does not. The guard
holds one end of a pipe; when the supervisor ends, for whatever reason, the pipe closes and the guard sweeps.
"""

from __future__ import annotations

import os
import signal

from dtrain.launch.process import end_run_processes


def start(run_id: str, close: tuple[int, ...] = ()) -> int:
    """Fork the guard. Returns the end of the pipe that the supervisor must keep open; `close` are files it must not."""
    listening, held = os.pipe()
    if os.fork() == 0:
        os.close(held)
        for handle in close:
            os.close(handle)
        _guard(run_id, listening)
    os.close(listening)
    return held


def _guard(run_id: str, listening: int) -> None:
    try:
        os.setsid()  # a signal to the supervisor's session is not for the guard
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.read(listening, 1)
        end_run_processes(run_id)
    finally:
        os._exit(0)
