"""Where a client is killed: a provider's server tells of each call before it is carried out and after."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Tripwire:
    """A server calls `passing(call, "before")`, carries the call out, then `passing(call, "after")`, then answers."""

    calls: list[str] = field(default_factory=list)
    _armed: tuple[str, str, int, Callable[[], None]] | None = None
    sprung: threading.Event = field(default_factory=threading.Event)

    def arm(self, call: str, when: str, number: int, act: Callable[[], None]) -> None:
        """At the `number`-th call of that name from now on, 1 for the next one."""
        self.sprung.clear()
        self._armed = (call, when, number, act)

    def passing(self, call: str, when: str) -> None:
        if when == "before":
            self.calls.append(call)
        if self._armed is None or self._armed[:2] != (call, when):
            return
        name, when, number, act = self._armed
        if number > 1:
            self._armed = (name, when, number - 1, act)
            return
        self._armed = None
        act()
        self.sprung.set()
