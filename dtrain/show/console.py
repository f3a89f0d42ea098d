"""Where words go: stdout, or stderr while stdout holds one JSON document."""

from __future__ import annotations

from rich.console import Console


def console_for(as_json: bool) -> Console:
    return Console(stderr=as_json, highlight=False)
