"""Secrets of a run on a machine: in a file in memory that its owner alone may read, gone once the run has them.

`python -m dtrain.launch.secrets FILE COMMAND…` puts what is in FILE into the environment, removes FILE, and becomes
COMMAND. No secret is ever in an argument, a log or a script.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from dtrain.errors import LauncherRefused
from dtrain.files import read_json

NAMES = ("WANDB_API_KEY", "HF_TOKEN")
"""What a training run needs a person's secret for: Weights & Biases, the hub."""
MEMORY = Path("/dev/shm")
"""tmpfs: never on a disk."""


def of_environment(names: tuple[str, ...], environment: Mapping[str, str]) -> dict[str, str]:
    """Those that are set here."""
    return {name: environment[name] for name in names if environment.get(name)}


def keep(secrets: Mapping[str, str]) -> Path:
    """Write them into a new file of mode 0600 in memory. LauncherRefused where the machine has no such place."""
    try:
        handle, name = tempfile.mkstemp(prefix=".dtrain-", dir=MEMORY)
    except OSError as error:
        raise LauncherRefused(
            f"there is no place in memory for secrets: {error.strerror}", file=str(MEMORY),
            fix="launchers.ssh.secrets: [] starts the run without them",
        ) from None  # fmt: skip
    with os.fdopen(handle, "w") as stream:
        json.dump(dict(secrets), stream)
    return Path(name)


def with_secrets(file: Path, command: tuple[str, ...]) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", "dtrain.launch.secrets", str(file), *command)


def main(arguments: list[str]) -> None:
    file, *command = arguments
    os.environ.update(read_json(Path(file)))
    Path(file).unlink()
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
