"""Watch a run until it ends, and pass Ctrl-C on: the first asks it to stop, the second ends it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from rich.console import Console

from dtrain.launch import begin
from dtrain.launch.api import CanKill, Launcher, Status
from dtrain.launch.observe import Observer, Snapshot
from dtrain.launch.registry import Entry
from dtrain.paths import RunPaths
from dtrain.show.progress import Screen, screen_for

LOOK_SECONDS = 0.1
KILLED = 130
ENDED = ("done", "failed", "interrupted", "lost")


class Interrupts:
    """Ctrl-C (and SIGTERM, from `timeout` and the like) counted instead of thrown, while a run is watched."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


def observer_of(entry: Entry) -> Observer:
    return Observer(RunPaths(begin.folder_of(entry)))


@dataclass(frozen=True)
class Watched:
    """A run on the screen of the client that started it."""

    entry: Entry
    launcher: Launcher
    observer: Observer
    interrupts: Interrupts


def watch(run: Watched, console: Console) -> int:
    """Show the run until it ends; the first Ctrl-C asks it to save and stop. Its exit code, or 130 after a second."""
    entry, launcher = run.entry, run.launcher

    def on_interrupt(count: int, screen: Screen) -> bool:
        if count == 1:
            screen.say("Asking the run to stop: it finishes its step and saves. Ctrl-C again ends it at once.")
            _in_background(lambda: launcher.cancel(entry.submitted()), screen)
            return False
        screen.say("Ending the run at once, without saving.")
        if isinstance(launcher, CanKill):
            launcher.kill(entry.submitted())
        else:
            screen.say(f"{launcher.name} cannot end it at once: dtrain status {entry.id} tells when it has stopped.")
        return True

    left = _look_until_ended(entry, run.observer, run.interrupts, console, on_interrupt)
    return KILLED if left else exit_code(begin.status(entry))


def attend(entry: Entry, console: Console) -> int | None:
    """Show the run until it ends or the person leaves with Ctrl-C; the run itself is left alone. None: left."""
    with Interrupts() as interrupts:
        left = _look_until_ended(entry, observer_of(entry), interrupts, console, lambda count, screen: True)
    return None if left else exit_code(begin.status(entry))


def _look_until_ended(
    entry: Entry,
    observer: Observer,
    interrupts: Interrupts,
    console: Console,
    on_interrupt: Callable[[int, Screen], bool],
) -> bool:
    """True when an interrupt made us leave before the end."""
    heard = 0
    with screen_for(console, entry.name) as screen:
        while True:
            status = begin.status(entry)  # asked before the look: the last look misses nothing
            screen.update(as_told(observer.look(), status))
            if status.state in ENDED:
                return False
            while heard < interrupts.count:
                heard += 1
                if on_interrupt(heard, screen):
                    return True
            time.sleep(LOOK_SECONDS)


def as_told(seen: Snapshot, status: Status) -> Snapshot:
    """A run that waits for its machine shows why, one that has trained what is left: its folder cannot know."""
    knows_more = status.state == "pending" or (status.state == "running" and seen.stage == "done")
    return replace(seen, stage=status.reason) if knows_more and status.reason else seen


def _in_background(work: Callable[[], Any], screen: Screen) -> None:
    def told() -> None:
        try:
            work()
        except Exception as error:
            screen.say(f"the request to stop failed: {error}")

    threading.Thread(target=told, daemon=True).start()


def exit_code(status: Status) -> int:
    """Of the run; a lost one counts as failed."""
    return status.exit_code if status.exit_code is not None else 1
