"""A world in which nobody waits long: a provider of the tests settles, and may be asked again, within a second.

    python -m tests.cloud.hurry dtrain.cloud.keeper RUN_FOLDER

is the keeper in that world. Every wait is there, only shorter.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dtrain.cloud import fleet, keeper, market, rental
from dtrain.cloud.provider import OutcomeUnknown, ProviderDown, Throttled
from dtrain.paths import RunPaths

ROOT = Path(__file__).resolve().parents[2]


def hurry(put: Callable[[Any, str, Any], None] = setattr) -> None:
    """In this process, and in the keepers that it starts. `put` may take it back later."""
    for owner, name, short in (
        (market, "SETTLE_SECONDS", 1.0), (market, "POLL_SECONDS", 0.2), (fleet, "ASK_PROVIDER_SECONDS", 1.0),
        (rental, "ASK_PROVIDER_SECONDS", 1.0), (Throttled, "retry_seconds", 0.5), (ProviderDown, "retry_seconds", 0.5),
        (OutcomeUnknown, "retry_seconds", 0.5), (keeper, "AGAIN_SECONDS", 0.5), (keeper, "command_of", _hurried),
    ):  # fmt: skip
        put(owner, name, short)


def _hurried(paths: RunPaths) -> tuple[str, ...]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    words = ("-m", "tests.cloud.hurry", "dtrain.cloud.keeper", str(paths.output))
    return ("env", f"PYTHONPATH={path}", sys.executable, "-P", *words)


if __name__ == "__main__":
    hurry()
    sys.exit(keeper.main(sys.argv[2:]))
