"""What a rank does when it is told to stop, and when its parent dies."""

from __future__ import annotations

import ctypes
import os
import signal
from types import FrameType

PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


class StopFlag:
    """Set by SIGTERM, SIGINT or SIGUSR1; the loop asks it between steps. A second SIGINT (Ctrl-C) leaves at once.

    Any other may come again and again, and must not cost the checkpoint: a batch system tells every process of a job,
    and so does the supervisor.
    """

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._heard)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            os._exit(75)
        self.asked = True


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent goes: no rank outlives its launcher."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
