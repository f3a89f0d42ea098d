"""Faults at one call over SSH: at the line itself, so that whatever tries again above it is tried too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from dtrain.errors import Unreachable
from dtrain.launch.tunnel import Answer, Tunnel
from tests.launch.fault_table import Injected


def faulty_tunnel(fault: Injected, patch: pytest.MonkeyPatch) -> None:
    """Every line of this process has the fault at its call."""
    run, files = Tunnel.run, Tunnel.files

    def ran(tunnel: Tunnel, command: Sequence[str], *rest: Any) -> Answer:
        answer: Answer = fault.at(called(command), lambda: run(tunnel, command, *rest), cut, cut)
        return answer

    @contextmanager
    def opened(tunnel: Tunnel) -> Iterator[Any]:
        fault.at("sftp", lambda: None, cut, cut)
        with files(tunnel) as sftp:
            yield sftp

    patch.setattr(Tunnel, "run", ran)
    patch.setattr(Tunnel, "files", opened)


def cut() -> Any:
    raise Unreachable("the line was cut by the test")


def called(command: Sequence[str]) -> str:
    """What a command asks for: the agent's verb, the relay's, or the module."""
    words = list(command)
    module = next((place for place, word in enumerate(words) if word.startswith("dtrain.launch.")), None)
    if module is None:
        return "probe"
    name, verb = words[module].rpartition(".")[2], words[module + 1 :]
    return {"agent": "".join(verb), "relay": f"relay {''.join(verb)}"}.get(name, name)
