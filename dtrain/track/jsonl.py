"""metrics.jsonl: one object per logged step, always written, by rank 0."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtrain.files import write_whole


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Add one object, with `time` (seconds since 1970). A line is one write, so a reader never sees half of one."""
    text = json.dumps(
        {name: value for name, value in line.items() if value is not None} | {"time": round(time.time(), 3)}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(text + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line cut in half by a crash is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def forget_after(path: Path, step: int) -> None:
    """Drop what was logged beyond `step`: a resumed run does those steps again."""
    kept = [line for line in read(path) if line.get("step", 0) <= step]
    if path.exists():
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
