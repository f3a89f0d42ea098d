"""What a process arranges for itself: where its output goes, and that it does not outlive its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


ACCEPT_CHANGES = "DTRAIN_ACCEPT_CHANGES"
"""In the environment of one life of a run, by `dtrain resume --force`: other data, another tokenizer, other code."""


def accepts_changes() -> bool:
    return os.environ.get(ACCEPT_CHANGES) == "1"


def die_with_parent() -> None:
    """Ask Linux to kill this process when the thread that started it ends; elsewhere it does nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def speak_into(log: Path) -> None:
    """From here on all output of this process, libraries and C++ included, goes to its own log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
