"""Every error dtrain raises on purpose, as one tree. The exit codes are part of the contract.

DtrainError
├── RunFailed            1   a run was started and failed
├── BadInput             2   the person's file, flag or data is wrong
│   └── BadInputs        2   several of them, told at once
├── DoesNotFit           3   the plan needs more than the machine has
├── PartMissing          4   an extra is not installed
├── LauncherRefused      5   a launcher or provider said no
├── Unreachable          5   a machine does not answer; a run there may be alive
├── StillBilled          6   a machine that costs money is still there
└── Interrupted         75   stopped on request; `dtrain resume` goes on
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class DtrainError(Exception):
    """What went wrong, where, what was found, what is allowed, and what to do next.

    `message` is one sentence. `file` and `line` (1-based) say where; `key` is a dotted path such as
    `datasets[0].type`. What is not known stays None.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        key: str | None = None,
        value: Any = None,
        allowed: Any = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.line = line
        self.key = key
        self.value = value
        self.allowed = allowed
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:  # the default loses keyword arguments when an error crosses processes
        return _rebuild, (type(self), self.as_json())

    def as_json(self) -> dict[str, Any]:
        """The contract's error object."""
        return {
            "code": self.exit_code,
            "message": self.message,
            "file": self.file,
            "line": self.line,
            "key": self.key,
            "value": self.value,
            "allowed": self.allowed,
            "fix": self.fix,
        }

    def where(self) -> str:
        """`file:line`, `file`, or an empty string."""
        if self.file is None:
            return ""
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def __str__(self) -> str:
        head = ": ".join(part for part in (self.where(), self.key or "", self.message) if part)
        found = f" (found: {self.value!r})" if self.value is not None and repr(self.value) not in self.message else ""
        allowed = f"\n  allowed: {self.allowed}" if self.allowed is not None else ""
        fix = f"\n  fix: {self.fix}" if self.fix else ""
        return head + found + allowed + fix


class RunFailed(DtrainError):
    exit_code = 1


class BadInput(DtrainError):
    exit_code = 2


class BadInputs(BadInput):
    """All errors of one file at once."""

    def __init__(self, errors: Sequence[BadInput]) -> None:
        super().__init__(f"{len(errors)} errors" if len(errors) != 1 else errors[0].message)
        self.errors = list(errors)

    def __reduce__(self) -> tuple[Any, ...]:
        return BadInputs, (self.errors,)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class DoesNotFit(DtrainError):
    exit_code = 3


class PartMissing(DtrainError):
    """An extra is not installed; `fix` is the pip command to type."""

    exit_code = 4

    @classmethod
    def of(cls, part: str, extra: str, what_for: str) -> PartMissing:
        return cls(f"{part} is not installed, and {what_for} needs it", fix=f"pip install 'dtrain[{extra}]'")


class LauncherRefused(DtrainError):
    exit_code = 5


class Unreachable(DtrainError):
    """No LauncherRefused, which means that nothing was started."""

    exit_code = 5


class StillBilled(DtrainError):
    exit_code = 6


class Interrupted(DtrainError):
    exit_code = 75


def _rebuild(cls: type[DtrainError], told: dict[str, Any]) -> DtrainError:
    fields = {name: value for name, value in told.items() if name not in ("code", "message")}
    return cls(told["message"], **fields)
