"""On which machines a run lies that is reached over SSH, for the client that started it and for any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dtrain.errors import LauncherRefused
from dtrain.files import write_json
from dtrain.launch.ending import read_or_none
from dtrain.launch.machine import Machine, as_json, for_anybody, from_json
from dtrain.launch.spec import DEFAULT_GRACE_SECONDS
from dtrain.launch.tunnel import Trust
from dtrain.paths import RunPaths


@dataclass(frozen=True)
class Where:
    """On which machines a run lies: what its handle carries, and `remote.json`."""

    run_id: str
    machines: tuple[Machine, ...]
    """The first holds rank 0. Paths as they are on the machine."""
    trust: Trust
    grace_seconds: float = DEFAULT_GRACE_SECONDS

    def as_json(self) -> dict[str, Any]:
        machines = [as_json(machine) for machine in self.machines]
        return {
            "run_id": self.run_id, "machines": machines, "trust": asdict(self.trust),
            "grace_seconds": self.grace_seconds,
        }  # fmt: skip

    @classmethod
    def of(cls, data: Mapping[str, Any], paths: RunPaths) -> Where | None:
        """From a handle, else (its client died before it had one) from the run's folder. None: nothing was started."""
        told = data or read_or_none(paths.remote)
        if not told:
            return None
        machines = tuple(from_json(machine) for machine in told["machines"])
        return cls(told["run_id"], machines, Trust(**told["trust"]), told["grace_seconds"])

    def note(self, paths: RunPaths) -> None:
        """Before anything is on a machine: a client that dies from here on leaves a folder that knows where to look."""
        try:
            write_json(paths.remote, {"schema_version": 1, **self.as_json()})
        except OSError as error:
            raise LauncherRefused(
                f"the run's folder here cannot be written: {error.strerror}", file=str(paths.run)
            ) from None

    @property
    def names(self) -> list[str]:
        return [str(machine.host) for machine in self.machines]


def told_there(
    machines: Sequence[Machine], grace_seconds: float, options: Mapping[str, Any], named_by: str
) -> dict[str, Any]:
    """What run.json on a machine says of all of them, for a client that only finds that machine (`adopt`).

    `named_by`: the launcher's option that names machines; what it says here means nothing elsewhere.
    """
    return {
        "machines": [as_json(for_anybody(machine)) for machine in machines], "grace_seconds": grace_seconds,
        "named_by": named_by,
        "options": {key: value for key, value in options.items() if key not in (named_by, "key")},
    }  # fmt: skip
