"""Rented runs for people: stages with time and money, machines that nobody keeps."""

from __future__ import annotations

import time

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dtrain.cloud.collect import Survey
from dtrain.cloud.progress import Progress
from dtrain.units import dollars, duration


def print_survey(found: Survey, console: Console) -> None:
    """One block for each run, and who was asked: silence is told from a provider that has nothing."""
    asked = ", ".join(found.asked)
    if not found.strays and found.asked:
        console.print(f"No machine of ours is without a keeper at {asked}.", markup=False)
    elif not found.strays:
        console.print("No run of this computer has a machine without a keeper. No provider was asked.", markup=False)
    for stray in found.strays:
        rate = f", {dollars(stray.usd_per_hour)} an hour" if stray.usd_per_hour else ""
        where = stray.output or "started from another computer"
        console.print(Text(f"{stray.run_id} at {stray.launcher}{rate}  {where}", style="bold"), soft_wrap=True)
        for machine in stray.machines:
            console.print(Text(f"  {machine}"), soft_wrap=True)
    for problem in found.problems:
        console.print(Text(f"not asked: {problem}", style="yellow"), soft_wrap=True)
    if found.without_credentials:
        console.print(f"not asked, no credentials here: {', '.join(found.without_credentials)}", markup=False)


def stages_table(progress: Progress) -> Table:
    """What each stage took and cost."""
    table = Table("stage", "began", "took", "cost", title="where the time and the money went", title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    ends = [*progress.stages[1:], None]
    for stage, following in zip(progress.stages, ends, strict=True):
        if stage.stage == "over":
            continue
        end = following.began if following else time.time()
        usd = (following.usd if following else progress.usd) - stage.usd
        began = time.strftime("%H:%M:%S", time.localtime(stage.began))
        table.add_row(stage.stage, began, duration(max(0.0, end - stage.began)), f"${max(0.0, usd):,.3f}")
    return table
