"""The screen of a running run: live in a terminal, plain lines anywhere else. It only draws what `observe` saw."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dtrain.launch.observe import Snapshot
from dtrain.show.chart import PLAIN, loss_chart
from dtrain.units import duration

LINE_EVERY_SECONDS = 5.0
"""Between two lines about steps where there is no live screen."""
STAGE_WORDS = {
    "pending": "waiting to start",
    "starting": "starting ranks",
    "loading": "loading the model",
    "evaluating": "evaluating on held-out rows",
    "saving": "saving a checkpoint",
    "exporting": "writing the model",
    "sampling": "letting the model write",
}

PASSING_STAGES = ("evaluating", "saving")
"""Stages between steps, not worth a line each time."""


class Screen(Protocol):
    def __enter__(self) -> Screen: ...
    def __exit__(self, *exception: object) -> None: ...
    def update(self, snapshot: Snapshot) -> None: ...

    def say(self, words: str) -> None:
        """One line that stays."""


def screen_for(console: Console, title: str) -> Screen:
    """A live screen where the output is a terminal that can move its cursor."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveScreen(console, title)
    return LineScreen(console, title)


def numbers(snapshot: Snapshot) -> list[str]:
    """`loss 3.210`, `held-out 3.400`, `1,234 tokens/s`, `3 min 20 s left`: what is known of them."""
    loss, held_out = snapshot.newest("loss"), snapshot.newest("eval_loss")
    speed, left = snapshot.newest("tokens_per_second"), snapshot.seconds_left
    said = [
        f"loss {loss:.3f}" if loss is not None else "",
        f"held-out {held_out:.3f}" if held_out is not None else "",
        f"{speed:,.0f} tokens/s" if speed is not None else "",
        f"{duration(left)} left" if left else "",
    ]
    return [word for word in said if word]


def stage_words(stage: str) -> str:
    return STAGE_WORDS.get(stage, stage)


def of_steps(snapshot: Snapshot) -> str:
    return f"step {snapshot.step}" + (f"/{snapshot.steps}" if snapshot.steps else "")


def chart_text(snapshot: Snapshot, console: Console, height: int = 8) -> str:
    """The loss curve as wide as the console allows, in characters it can show."""
    width = max(20, min(70, console.width - 12))
    lines = loss_chart(snapshot.curve("loss"), snapshot.curve("eval_loss"), width, height)
    text = "\n".join(lines)
    return text if console.encoding.startswith("utf") else text.translate(PLAIN)


class LiveScreen:
    """Redrawn in place."""

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title
        self.started = time.monotonic()
        self.live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> LiveScreen:
        self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def say(self, words: str) -> None:
        self.live.console.print(Text(words))

    def update(self, snapshot: Snapshot) -> None:
        for words in snapshot.words:
            self.say(words)
        self.live.update(self._picture(snapshot), refresh=True)

    def _picture(self, snapshot: Snapshot) -> Group:
        parts: list[Text | Table] = [self._head(snapshot)]
        if snapshot.steps:
            parts.append(self._bar(snapshot))
        chart = chart_text(snapshot, self.console)
        if chart:
            parts.append(Text(chart, style="cyan"))
        return Group(*parts)

    def _head(self, snapshot: Snapshot) -> Text:
        text = Text(f"{self.title}  ", style="bold")
        text.append(stage_words(snapshot.stage), style="green")
        return text.append(f"  {duration(time.monotonic() - self.started)}", style="dim")

    def _bar(self, snapshot: Snapshot) -> Table:
        row = Table.grid(padding=(0, 1))
        row.add_row(
            ProgressBar(total=snapshot.steps, completed=snapshot.step, width=24),
            Text(f"{of_steps(snapshot)}  " + "  ".join(numbers(snapshot))),
        )
        return row


class LineScreen:
    """A line when something happens: for pipes, logs and dumb terminals."""

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title
        self.stage = ""
        self.line_at = 0.0
        self.line_of = -1
        self.newest: Snapshot | None = None

    def __enter__(self) -> LineScreen:
        return self

    def __exit__(self, *exception: object) -> None:
        chart = chart_text(self.newest, self.console) if self.newest is not None else ""
        if chart:
            self.say(chart)

    def say(self, words: str) -> None:
        self.console.print(Text(words), soft_wrap=True)

    def update(self, snapshot: Snapshot) -> None:
        self.newest = snapshot
        for line in snapshot.words:
            self.say(line)
        words = stage_words(snapshot.stage)
        if words != self.stage and snapshot.stage not in PASSING_STAGES:
            self.stage = words
            self.say(f"{self.title}: {words}")
        if self._is_due(snapshot):
            self.line_at, self.line_of = time.monotonic(), snapshot.step
            self.say("  ".join([of_steps(snapshot), *numbers(snapshot)]))

    def _is_due(self, snapshot: Snapshot) -> bool:
        if not snapshot.lines or snapshot.step == self.line_of:
            return False
        return snapshot.step == snapshot.steps or time.monotonic() - self.line_at > LINE_EVERY_SECONDS
