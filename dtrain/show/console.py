"""Where words go: stdout, or stderr while stdout holds one JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import NoReturn

from rich.console import Console
from rich.text import Text


class Screen(Console):
    """rich's console, but that a reader who left (`| head`) is no failed run: rich would exit with 1."""

    def on_broken_pipe(self) -> NoReturn:
        with suppress(SystemExit):
            super().on_broken_pipe()
        raise BrokenPipeError


def console_for(as_json: bool) -> Console:
    return Screen(stderr=as_json, highlight=False)


def print_pairs(console: Console, pairs: Mapping[str, str]) -> None:
    """A name and a value a line; a value is never wrapped, so that a path can be copied whole."""
    longest = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        console.print(Text(name.ljust(longest), style="dim") + Text(f"  {value}"), soft_wrap=True)
