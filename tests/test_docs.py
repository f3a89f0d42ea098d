"""What the pages say is true: commands exist and parse, links lead somewhere, the table of exit codes is the code."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from dtrain import errors
from dtrain.cli.main import COMMANDS, HIDDEN, cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_FOR_REAL = {"plan", "profiles", "import", "config"}
"""Commands that need no torch and start nothing; the others are parsed as a person would type them."""


def console_commands() -> list[tuple[str, str]]:
    """(page, command) of every `$` line in a ```console block, without what it prints and without a comment."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            lines = [line[2:].split("  #")[0].strip() for line in block.splitlines() if line.startswith("$ ")]
            found += [(page.name, line) for line in lines]
    return found


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for target in re.findall(r"\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://", "#", "mailto:")):
                yield page, target


def parse(arguments: list[str]) -> None:
    """What click would do before calling the command; a wrong option, a missing argument raise."""
    command: click.Command = cli
    context = click.Context(cli, info_name="dtrain")
    while isinstance(command, click.Group):
        name, *arguments = arguments
        found = command.get_command(context, name)
        assert found is not None, f"no such command: {name}"
        command = found
    command.make_context(command.name or "", list(arguments), parent=context)


def test_the_pages_show_commands() -> None:
    assert len(console_commands()) >= 10


@pytest.mark.parametrize(("page", "line"), console_commands())
def test_every_command_in_a_console_block_works(page: str, line: str, tmp_path: Path) -> None:
    words = shlex.split(line)
    if words[0] == "dtrain" and words[1] in RUN_FOR_REAL:
        env = os.environ | {"DTRAIN_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "dtrain", *words[1:]]
        ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, ran.stderr
    elif words[0] == "dtrain":
        parse(words[1:])
        assert [word for word in words if word.endswith((".yaml", ".yml")) and not (ROOT / word).exists()] == []
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    elif words[0] == "python":
        assert (ROOT / words[1]).exists() or words[1] == "-m"
    else:
        assert words[:2] == ["pip", "install"], f"{page}: nothing here checks `{line}`"


def test_the_check_of_commands_can_fail() -> None:
    with pytest.raises(click.ClickException):
        parse(["launch", "x.yaml", "--no-such-option"])
    with pytest.raises(click.ClickException):
        parse(["resume"])


@pytest.mark.parametrize(("page", "target"), [pytest.param(*link, id=f"{link[0].name}:{link[1]}") for link in links()])
def test_links_lead_to_files(page: Path, target: str) -> None:
    assert (page.parent / target.split("#")[0]).exists()


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in text.splitlines() if line.startswith("| `dtrain"))
    shown = {name for name in COMMANDS if re.search(rf"`(dtrain )?{name}\b", table)}
    assert set(COMMANDS) - HIDDEN - shown == set()


def test_extras_in_the_readme_exist() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", text[text.index("Other extras:") :].split(".")[0])) | {"train"}
    assert named == set(project["optional-dependencies"])


def test_exit_codes_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "exit_codes.md").read_text(encoding="utf-8")
    told = {(int(code), name) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)}
    kinds = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.DtrainError) and kind not in (errors.DtrainError, errors.BadInputs)
    ]
    assert told == {(kind.exit_code, kind.__name__) for kind in kinds}
    assert {0, 130} <= {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}


def test_architecture_names_every_room_and_run_file() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {folder.name for folder in (ROOT / "dtrain").iterdir() if (folder / "__init__.py").exists()}
    assert {room for room in rooms if f"`{room}`" not in page} == set()
    tops = set(re.findall(r"^\| `\w+` \| [^|]+ \| (.+) \|$", page, re.MULTILINE))
    assert len(tops) == len(rooms)
    for room, files in re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", page, re.MULTILINE):
        missing = [name for name in re.findall(r"`([\w.]+)`", files) if not (ROOT / "dtrain" / room / name).exists()]
        assert missing == [], room
