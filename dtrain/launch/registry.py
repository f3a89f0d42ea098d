"""What was started from here: one JSON file per run in dtrain's home.

The intent is written (and synced) before a launcher is asked to start anything, the handle after it: a client that
dies in between leaves an entry without a handle, and the run can be found again by its id. One file per run and
whole-or-absent writes make two clients safe.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dtrain import paths
from dtrain.errors import BadInput
from dtrain.files import read_json, write_json
from dtrain.launch.api import Handle, Status


@dataclass(frozen=True)
class Entry:
    id: str
    name: str
    folder: str
    """The run's output folder, absolute."""
    launcher: str
    profile: str
    created: float
    """Seconds since 1970."""
    nodes: int = 1
    ranks_per_node: int = 1
    device: str = "cpu"
    working_directory: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    """`launchers.NAME` of the config, for a later submit of the same run."""
    handle: Mapping[str, Any] | None = None
    """What `submit` gave; None while that is not known."""
    last: Mapping[str, Any] | None = None
    """The last status a launcher told, with the time: what is shown of a run elsewhere."""

    def submitted(self) -> Handle:
        """The handle; without one (the client died in between) a handle by which a launcher can look for it."""
        told = self.handle or {}
        return Handle(self.launcher, self.id, told.get("folder", self.folder), told.get("data", {}))

    def told(self, status: Status) -> Entry:
        return replace(self, last={**asdict(status), "time": round(time.time(), 3)})


@dataclass(frozen=True)
class Broken:
    """An entry that cannot be read: reported, never fatal."""

    path: Path
    why: str


def folder() -> Path:
    return paths.home() / "runs"


def write(entry: Entry) -> None:
    try:
        write_json(folder() / f"{entry.id}.json", {"schema_version": 1, **asdict(entry)})
    except OSError as error:
        raise BadInput(
            f"the registry of runs cannot be written: {error.strerror}", file=str(folder()),
            fix="set DTRAIN_HOME to a folder you may write to",
        ) from None  # fmt: skip


def forget(run_id: str) -> None:
    (folder() / f"{run_id}.json").unlink(missing_ok=True)


def read(path: Path) -> Entry | Broken:
    try:
        told = read_json(path)
        entry = Entry(**{one.name: told[one.name] for one in fields(Entry) if one.name in told})
        if not all(isinstance(word, str) for word in (entry.id, entry.name, entry.folder, entry.launcher)):
            raise TypeError("id, name, folder and launcher must be texts")
        float(entry.created)
    except (OSError, ValueError, TypeError) as error:
        return Broken(path, f"{type(error).__name__}: {error}")
    return entry


def entries() -> tuple[list[Entry], list[Broken]]:
    """All runs, newest first, and the entries that cannot be read."""
    found = [read(path) for path in folder().glob("*.json")] if folder().is_dir() else []
    good = [entry for entry in found if isinstance(entry, Entry)]
    good.sort(key=lambda entry: (entry.created, entry.id), reverse=True)
    return good, [entry for entry in found if isinstance(entry, Broken)]


def find(said: str) -> Entry:
    """The run that RUN means: an id, a unique beginning of one, a name (its newest run), or a folder.

    BadInput with the list when it could be several, with the nearest when it is none.
    """
    good, _ = entries()
    exact = [entry for entry in good if entry.id == said] or _by_folder(said, good)
    named = [entry for entry in good if entry.name == said]
    begun = [entry for entry in good if entry.id.startswith(said)] if said else []
    if exact or named:
        return (exact or named)[0]
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise BadInput("several runs begin like this", key="RUN", value=said, allowed=_listed(begun))
    raise no_such_run(said, good)


def namesakes(entry: Entry) -> list[Entry]:
    """Other runs of the same name."""
    return [other for other in entries()[0] if other.name == entry.name and other.id != entry.id]


def _by_folder(said: str, good: list[Entry]) -> list[Entry]:
    """Also of a run that this home never saw: its run.json tells enough."""
    try:
        if not Path(said).is_dir():
            return []
        run = paths.RunPaths.of(Path(said).resolve())
    except (OSError, ValueError):
        return []
    known = [entry for entry in good if Path(entry.folder).resolve() == run.output]
    return known or _told_by_itself(run)


def _told_by_itself(run: paths.RunPaths) -> list[Entry]:
    try:
        told = read_json(run.about) | {"folder": str(run.output)}
        return [Entry(**{one.name: told[one.name] for one in fields(Entry) if one.name in told})]
    except (OSError, ValueError, TypeError):
        return []


def no_such_run(said: str, good: list[Entry]) -> BadInput:
    import difflib

    near = difflib.get_close_matches(said, [word for entry in good for word in (entry.name, entry.id)], n=1)
    fix = f"did you mean {near[0]}?" if near else "dtrain runs"
    return BadInput(
        "no such run", key="RUN", value=said,
        allowed=_listed(good[:5]) if good else "an id, a name or a folder of a run; none was started from here",
        fix=fix,
    )  # fmt: skip


def _listed(found: list[Entry]) -> str:
    return ", ".join(f"{entry.id} ({entry.name})" for entry in found)
