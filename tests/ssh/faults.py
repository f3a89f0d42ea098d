"""Faults at one call of a client: before it reaches the machine, or after it did and before the answer came back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from dtrain.errors import Unreachable
from dtrain.launch.machine import Remote

Kind = Callable[[], None]


def lost() -> None:
    """The line is cut."""
    raise Unreachable("the line was cut by the test")


def killed() -> None:
    """The client dies at this instruction, without a chance to clean up."""
    os._exit(137)


class FaultAt:
    """Wraps what is asked of an agent; `asked` is the log of what was, `hit` whether the fault was reached."""

    def __init__(self, verb: str, when: str, fault: Kind) -> None:
        self.verb = verb
        self.when = when
        self.fault = fault
        self.asked: list[str] = []
        self.hit = False
        self.plain = Remote.ask

    def arm(self, monkeypatch: pytest.MonkeyPatch) -> FaultAt:
        monkeypatch.setattr(Remote, "ask", lambda remote, verb, *rest: self.ask(remote, verb, *rest))
        return self

    def ask(self, remote: Remote, verb: str, told: Mapping[str, Any], *rest: Any) -> dict[str, Any]:
        self.asked.append(verb)
        strikes = verb == self.verb and not self.hit
        if strikes and self.when == "before":
            self.hit = True
            self.fault()
        answer = self.plain(remote, verb, told, *rest)
        if strikes:
            self.hit = True
            self.fault()
        return answer
