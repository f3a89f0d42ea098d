"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def file_argument(command: Command) -> Command:
    """FILE, the config. The loader says what is wrong with the path, with a near name."""
    return click.argument("file", type=click.Path(path_type=Path))(command)


def set_option(command: Command) -> Command:
    """`--set a.b=c`, repeatable; arrives as `sets`."""
    words = "Overrule one value, read as YAML: --set learning_rate=1e-4 --set datasets[0].path=x.jsonl. Repeatable."
    return click.option("--set", "sets", metavar="KEY=VALUE", multiple=True, help=words)(command)


def json_option(command: Command) -> Command:
    """`--json`; arrives as `as_json`. stdout then holds one document and nothing else."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, words on stderr.")(
        command
    )


def profile_option(*, required: bool = False, default: str | None = None) -> Callable[[Command], Command]:
    """`--profile a100x8`; arrives as `profile`, a name or the path of a profile's YAML."""
    words = "The machine: a100x8, h100x8x4, 4090x1, cpu, auto, or your own YAML (`dtrain profiles` lists them)."
    return click.option("--profile", metavar="P", required=required, default=default, help=words)
