"""A rank ran out of memory: what it held beside what was planned, and the layout that would do."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dtrain.errors import DtrainError
from dtrain.files import read_json, write_json, write_whole
from dtrain.launch.ending import Ending, last_checkpoint, put_aside_life, read_or_none
from dtrain.launch.layout import layout_of
from dtrain.paths import RunPaths
from dtrain.planner.choice import Choice
from dtrain.planner.plan import Plan
from dtrain.planner.replan import LAYOUT_KEYS, Layout, Shortage, changes, next_plan
from dtrain.units import memory


@dataclass(frozen=True)
class WayOn:
    """How a run that was out of memory can go on."""

    layout: Layout
    plan: Plan

    @property
    def words(self) -> str:
        told = ", ".join(f"{key} {value}" for key, value in changes(self.layout.choice, self.plan.choice).items())
        pace = self.plan.time.step_seconds / self.layout.plan["throughput"]["step_seconds"]
        return f"{told}: planned peak {memory(self.plan.memory.peak_allocated)}, a step {pace:.2f}x as long"

    def command(self, paths: RunPaths) -> str:
        """To paste; the global batch stays as it is."""
        said = read_or_none(paths.about) or {}
        config, choice = self.layout.loaded.config, self.plan.choice
        sets = {key: getattr(choice, key) for key in LAYOUT_KEYS if getattr(choice, key) != getattr(config, key)}
        flags = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
        force = [] if last_checkpoint(paths) is not None else ["--force"]
        return shlex.join(["dtrain", "resume", str(said.get("id", paths.output)), *force, *flags])


def after_shortage(paths: RunPaths, ending: Ending, may_replan: bool = True) -> tuple[Ending, bool]:
    """Where a rank was out of memory: the ending with the way on, and whether that was taken (`on_oom: replan`), so
    that another life may begin. `may_replan`: whether every rank reads the plan that would be written here."""
    short = shortage_of(paths, ending)
    if short is None:
        return ending, False
    found = way_on(paths, short)
    if found is None or not may_replan or found.layout.loaded.config.on_oom != "replan":
        return explained(paths, ending, found), False
    try:
        take(paths, found, put_aside_life(paths, ending))
    except OSError as error:
        return replace(ending, reason=f"{ending.reason}; the next layout could not be written: {error}"), False
    print(f"[dtrain] {ending.reason}; going on with {found.words}", flush=True)
    return ending, True


def shortage_of(paths: RunPaths, ending: Ending) -> Shortage | None:
    """What the rank that failed first says of its memory, if that is why it failed."""
    told = _error_of(paths, ending)
    try:
        return Shortage.from_json(told["shortage"])
    except (KeyError, TypeError):
        return None


def _error_of(paths: RunPaths, ending: Ending) -> dict[str, Any]:
    """Empty where there is none, or none that can be read: the run's end must be told all the same."""
    try:
        return (read_or_none(paths.rank_error(ending.rank)) or {}) if ending.rank is not None else {}
    except (DtrainError, OSError):
        return {}


def way_on(paths: RunPaths, shortage: Shortage) -> WayOn | None:
    """None where nothing fits, or where nothing can be planned here (no config of the model at hand)."""
    try:
        layout = layout_of(paths)
        plan = next_plan(layout, shortage, tried(paths))
    except (DtrainError, OSError, ValueError, KeyError, TypeError):
        return None
    return None if plan is None else WayOn(layout, plan)


def tried(paths: RunPaths) -> list[Choice]:
    """Layouts of earlier lives."""
    return [Choice.from_json(read_json(file)["choice"]) for file in paths.past.glob("*/plan.json")]


def explained(paths: RunPaths, ending: Ending, found: WayOn | None) -> Ending:
    """The ending with the way on; for `dtrain status` and for the error that the client shows."""
    told = _error_of(paths, ending)
    fix = f"{found.command(paths)}  ({found.words}), or set on_oom: replan" if found else _NOTHING_FITS
    with suppress(OSError):  # a full disk
        write_json(paths.rank_error(ending.rank or 0), {**told, "fix": fix})
    known = f"; a layout that would fit: {found.words}" if found else "; no other layout was found that would fit"
    return replace(ending, reason=f"{ending.reason}{known}")


_NOTHING_FITS = "a larger machine (dtrain rent), a shorter sequence_len, or adapter: lora; `dtrain plan` compares them"


def take(paths: RunPaths, found: WayOn, life: Path | None) -> None:
    """Go on with the other layout: plan.json is written anew, the one before is kept with the life that it had."""
    if life is not None:
        write_whole(life / paths.plan.name, paths.plan.read_bytes())
    write_whole(paths.plan, json.dumps(found.plan.as_json(), indent=2, ensure_ascii=False) + "\n")
