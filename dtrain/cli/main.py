"""The group of commands, lazily loaded, and the one place where errors become words and exit codes."""

from __future__ import annotations

import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import click

from dtrain import __version__, paths
from dtrain.errors import BadInput, BadInputs, DtrainError

COMMANDS = {
    "plan": "Does it fit, how fast, how many dollars: before anything starts.",
    "launch": "From a YAML to a trained model, here or elsewhere.",
    "rent": "Where to rent a machine for it, for how long, for how much.",
    "profiles": "The machines dtrain knows by name.",
    "prices": "What machines cost and when that was read; `refresh` asks the providers.",
    "config": "Show, check and describe a config file.",
    "import": "Read an Axolotl YAML: what it would have lost, and ours.",
    "preview": "See rows as the model will see them, trained tokens coloured.",
    "tokens": "Count tokens of a file or text with one or more tokenizers.",
    "lengths": "Histogram of row lengths and what each window cuts.",
    "runs": "List the runs.",
    "status": "How a run stands.",
    "logs": "A run's logs; -f follows.",
    "attach": "Watch a run that was started elsewhere.",
    "stop": "Stop a run; it saves first.",
    "resume": "Go on where a run stopped.",
    "fetch": "Bring home what a run made elsewhere, verified.",
    "gc": "Rented machines that nobody keeps: save what they made, end them.",
    "generate": "Let a trained model write.",
    "export": "A Hugging Face folder from a run's checkpoint.",
    "doctor": "What is installed, what is missing, what to type.",
    "train": "What torchrun starts on each rank.",
}
HIDDEN = {"train"}
MODULES = {"import": "import_"}
"""Command → module where the name is a Python keyword."""


class LazyGroup(click.Group):
    """Lists every command without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if name not in HIDDEN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"dtrain.cli.{MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"dtrain {near[0]}" if near else "dtrain --help"
            raise BadInput("no such command", value=name, fix=f"did you mean: {hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: dtrain plan configs/storyteller.yaml --profile a100x8",
)
@click.version_option(__version__, prog_name="dtrain")
def cli() -> None:
    """From a YAML file to a trained language model, on local, shared or rented GPUs.

    \b
    dtrain plan   FILE --profile a100x8   does it fit, how fast, what does it cost (no torch needed)
    dtrain launch FILE --profile cpu      train it; --dry-run stops after the plan
    dtrain runs                           what was started; then status, logs -f, stop, resume

    \b
    Exit codes: 0 done · 1 the run failed · 2 bad input · 3 it does not fit · 4 a part is not installed ·
    5 a launcher or provider refused · 6 a billed machine is still there · 75 interrupted, can be resumed ·
    130 second Ctrl-C
    """


def tell(error: DtrainError, as_json: bool) -> None:
    """One error (or several) to stderr as words, or to stdout as the contract's JSON."""
    errors = error.errors if isinstance(error, BadInputs) else [error]
    if as_json:
        document: dict[str, Any] = {"schema_version": 1, "error": errors[0].as_json()}
        if len(errors) > 1:
            document["errors"] = [one.as_json() for one in errors]
        click.echo(json.dumps(document, indent=2, default=str))
        return
    for one in errors:
        click.echo(f"error: {one}", err=True)


def main(argv: list[str] | None = None) -> None:
    """Run the command line; exits with the contract's codes."""
    args = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):  # a terminal that has no such letters shows ?, and nothing ends for it
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = cli.main(args=args, prog_name="dtrain", standalone_mode=False)
    except DtrainError as error:
        tell(error, "--json" in args)
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:  # a group typed alone: its help is the answer
        click.echo(error.ctx.get_help() if error.ctx is not None else "dtrain --help")
        sys.exit(0)
    except click.ClickException as error:
        tell(BadInput(error.format_message(), fix=_usage_hint(error)), "--json" in args)
        sys.exit(2)
    except BrokenPipeError:  # `dtrain runs | head`
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        tell(_unusable_home(error), "--json" in args)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _unusable_home(error: OSError) -> BadInput:
    """A folder for dtrain's own records that cannot be written or read; any other OSError is raised again."""
    home = paths.home()
    if not isinstance(error.filename, str) or home not in (Path(error.filename), *Path(error.filename).parents):
        raise error
    fix = f"set DTRAIN_HOME to a folder you may write to (it is {home})"
    return BadInput(f"dtrain's own folder cannot be used: {error.strerror}", file=error.filename, fix=fix)


def _usage_hint(error: click.ClickException) -> str | None:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context is not None else None
