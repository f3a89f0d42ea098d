"""A file layer that fails: the n-th call that changes anything below a folder kills the process, or raises ENOSPC.

Real calls at real places: `os.open` for writing, `os.write`, `os.fsync`, `os.ftruncate`, `os.rename`, `os.replace`,
`os.mkdir`, `os.unlink` and `os.rmdir` are wrapped, which is all that saving a checkpoint does to a disk.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

BLOCK_BYTES = 4096
"""Writes past the page cache come in multiples of it, and so do their halves."""


def half_of(size: int) -> int:
    half = size // 2
    return half if size % BLOCK_BYTES else half - half % BLOCK_BYTES


CALLS = ("open", "write", "fsync", "ftruncate", "rename", "replace", "mkdir", "unlink", "rmdir")
Kind = Literal["kill", "fail"]


class Fault:
    """`at`: which call, counted from 1. A process that is killed dies before the call has any effect; half of a write
    reaches the file."""

    def __init__(self, below: Path, kind: Kind, at: int) -> None:
        self.below = str(below)
        self.kind = kind
        self.at = at
        self.count = itertools.count(1)

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *arguments: Any, **options: Any) -> Any:
            if self._concerns(name, target, arguments) and next(self.count) == self.at:
                if name == "write":
                    real(target, arguments[0][: half_of(len(arguments[0]))])
                if self.kind == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(target, *arguments, **options)

        return call

    def _concerns(self, name: str, target: Any, arguments: tuple[Any, ...]) -> bool:
        if name == "open" and not (arguments and arguments[0] & (os.O_WRONLY | os.O_RDWR)):
            return False
        try:
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
        except OSError:
            return False
        return str(path).startswith(self.below)
