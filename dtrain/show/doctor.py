"""What the doctor found, a line each."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from dtrain.launch.doctor import Finding

SIGNS = {"ok": ("ok  ", "green"), "warning": ("note", "yellow"), "missing": ("MISS", "red")}


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    widest = max(len(finding.part) for finding in findings)
    for finding in findings:
        sign, colour = SIGNS[finding.state]
        line = Text(f"{sign}  ", style=colour) + Text(f"{finding.part.ljust(widest)}  {finding.found}")
        if finding.why and finding.state != "ok":
            line.append(f"  (for {finding.why})", style="dim")
        console.print(line, soft_wrap=True)
        if finding.fix:
            console.print(Text(f"{' ' * (widest + 8)}{finding.fix}", style="cyan"), soft_wrap=True)
