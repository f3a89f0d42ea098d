"""Where a value was said, and a config together with that knowledge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dtrain.config.schema import Config

KeyPath = tuple[str | int, ...]
"""`("datasets", 0, "type")`, written `datasets[0].type`."""


def dotted(path: KeyPath) -> str:
    """`("datasets", 0, "type")` → `datasets[0].type`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


@dataclass(frozen=True)
class Origin:
    """One value's source. `said_as` is the dotted path the person typed, where an alias or a flag was used."""

    kind: Literal["file", "flag", "default", "planner"]
    file: str | None = None
    line: int | None = None
    """1-based."""
    said_as: str | None = None

    def text(self) -> str:
        """`storyteller.yaml:12`, `--set a.b`, `default` or `planner`."""
        if self.kind == "flag":
            return f"--set {self.said_as}"
        if self.kind != "file":
            return self.kind
        return f"{self.file}:{self.line}" if self.line is not None else str(self.file)


DEFAULT = Origin("default")


@dataclass(frozen=True)
class Loaded:
    """A resolved config, and for each value that was said, where."""

    config: Config
    origins: Mapping[str, Origin]
    """Dotted path → where it was said; a path that is absent has its default."""
    notes: tuple[str, ...]
    """For all to see: keys that were read and change nothing, aliases taken, batch arithmetic."""
    file: Path | None
    sets: tuple[str, ...] = ()
    """The `--set` flags as typed, so that a command we propose can repeat them."""

    def origin(self, path: str) -> Origin:
        return self.origins.get(path, DEFAULT)
