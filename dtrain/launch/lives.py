"""One life of a run after the other, while it fails and may be started again (`max_restarts`).

On several machines without a common folder each supervisor decides for itself, and alike: a rank that fails takes those
of the other machines with it. They meet where they met before, under a name that no torchrun of the last life has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dtrain.errors import DtrainError
from dtrain.launch.ending import FAILED, Ending, put_aside_life
from dtrain.launch.spec import LaunchSpec
from dtrain.paths import RunPaths

MEETING_SECONDS = 600.0
"""For the other machines to come back: as long as torchrun's own join_timeout. A hang is noticed later than a death."""
OTHERS_STAYED_AWAY = f"the other machines did not come back within {MEETING_SECONDS:g} s"


def lives(paths: RunPaths, spec: LaunchSpec, live: Callable[[int], Ending], stop_asked: Callable[[], bool]) -> Ending:
    """How the last life ended. `live`: one of them, by its number, counted from 0."""
    restarts, before, number = None, None, 0
    while True:
        ending = live(number)
        number += 1
        if before is not None and ending.reason == OTHERS_STAYED_AWAY:
            return _not_again(before, OTHERS_STAYED_AWAY)
        if ending.code != FAILED or stop_asked():
            return ending
        from dtrain.launch.shortage import after_shortage  # the planner, only for a run that failed

        ending, replanned = after_shortage(paths, ending, may_replan=spec.machines == 1)
        if replanned:
            continue
        restarts = restarts_allowed(paths) if restarts is None else restarts
        if not restarts:
            return ending
        if before is not None and ending.step <= before.step and spec.machines == 1:
            return _not_again(ending, "it got no further than the life before")
        print(f"[dtrain] {ending.reason}; starting again from the last checkpoint", flush=True)
        restarts, before = restarts - 1, ending
        put_aside_life(paths, ending)


def _not_again(ending: Ending, why: str) -> Ending:
    return replace(ending, reason=f"{ending.reason}; not started again: {why}")


def restarts_allowed(paths: RunPaths) -> int:
    """`max_restarts` of the run's config."""
    from dtrain.config.load import load  # only for a run that failed

    try:
        return load(paths.config).config.max_restarts
    except (DtrainError, OSError):
        return 0
