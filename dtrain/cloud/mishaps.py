"""What may happen to a rented run that is no end of its training, and how an error of the road becomes an ending."""

from __future__ import annotations

import traceback

from dtrain.cloud.provider import ProviderError
from dtrain.cloud.run_there import last_whole_checkpoint
from dtrain.errors import DtrainError
from dtrain.launch.ending import Ending, interrupted
from dtrain.paths import RunPaths


class Taken(Exception):
    """A machine is gone, or about to be, though nobody asked for its end."""


class Helpless(Exception):
    """This client may not ask the provider; another one may. Nothing is decided about the run."""

    def __init__(self, why: ProviderError) -> None:
        super().__init__(why.message)
        self.why = why


def as_told(error: Exception) -> DtrainError:
    """A mistake of ours in words, its traceback in the keeper's log."""
    if isinstance(error, DtrainError):
        return error
    traceback.print_exception(error)
    return DtrainError(f"the run's keeper failed: {type(error).__name__}: {error}")


def ending_of(error: DtrainError, paths: RunPaths) -> Ending:
    """Where there is no other machine to go on with, the run can go on later: it was interrupted."""
    words = in_a_line(error)
    if isinstance(error, ProviderError) and error.elsewhere and last_whole_checkpoint(paths) is not None:
        return interrupted(paths, words)
    return Ending.now(paths, error.exit_code, words)


def in_a_line(error: DtrainError) -> str:
    return " ".join(error.message.split())
