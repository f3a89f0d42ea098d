"""What a rank does when it is told to stop."""

from __future__ import annotations

import os
import signal
from types import FrameType


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
