"""`dtrain doctor`: what is installed, what is missing, what to type."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from dtrain.cli.options import json_option


@click.command("doctor")
@click.option("--full", is_flag=True, help="Also try torch, each GPU and DeepSpeed in a process of their own.")
@json_option
def command(full: bool, as_json: bool) -> None:
    """Look at this machine: Python, packages, compiler, GPUs, disk, launchers; each gap with the command that fills it.

    \b
    dtrain doctor
    dtrain doctor --full
    """
    from dtrain.launch.doctor import examine
    from dtrain.show.console import console_for
    from dtrain.show.doctor import print_findings

    findings = examine(full)
    if as_json:
        document = {"schema_version": 1, "findings": [asdict(finding) for finding in findings]}
        click.echo(json.dumps(document, indent=2))
        return
    print_findings(findings, console_for(False))
