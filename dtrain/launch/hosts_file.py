"""A file of hosts: a YAML list, or a mapping whose `hosts` is one; a line `user@host:port` each is such a list, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dtrain.errors import BadInput


def read_hosts_file(path: Path, where: str) -> tuple[list[Any], str]:
    """Its entries, and the key under which they lie in it. BadInput with the line where it is not readable."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"the hosts file cannot be read: {error.strerror}", key=where, value=str(path)) from None
    except UnicodeDecodeError:
        raise BadInput("the hosts file is not text", key=where, value=str(path)) from None
    try:
        told = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else None
        raise BadInput("the hosts file is not YAML", file=str(path), line=line, allowed=EXAMPLE) from None
    entries, key = (
        (told.get("hosts"), "hosts") if isinstance(told, dict) and set(told) == {"hosts"} else (told, "hosts")
    )
    if isinstance(entries, str):
        entries = entries.split()
    if not isinstance(entries, list) or not entries:
        raise BadInput("the hosts file holds no list of hosts", file=str(path), allowed=EXAMPLE)
    return entries, key


EXAMPLE = "lines such as `- user@host:port` or `- {host: user@host, key: ~/.ssh/id_ed25519}`"
