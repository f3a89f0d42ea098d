"""The house keeps its rooms: imports point down only, heavy parts load only where they work."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOOR = {
    "errors": 0, "units": 0, "assets": 0, "paths": 0, "files": 0, "heartbeat": 0, "own_process": 0, "dtrain": 0,
    "config": 1, "models": 1, "hardware": 1,
    "planner": 2, "data": 2, "track": 2,
    "train": 3, "launch": 3,
    "cloud": 4,
    "show": 5, "cli": 6, "__main__": 7,
}  # fmt: skip
"""A room may import rooms of lower floors, and itself; on its own floor only what MAY_ALSO names."""
MAY_ALSO = {"planner": {"config", "models", "hardware"}}
HEAVY = {"torch", "transformers", "deepspeed", "datasets", "numpy", "wandb", "fabric", "tokenizers", "peft", "pyarrow"}
HEAVY |= {"boto3", "botocore", "google", "httpx", "runpod", "vastai"}
MAY_BE_HEAVY = {"train", "data", "track"}
CLIENT = {"adopt", "again", "begin", "create", "doctor", "draft", "load", "observe", "registry"}
"""Modules of launch that are about runs in general, not about a place to run them."""
LAUNCHERS_MAY_IMPORT = {"errors", "units", "assets", "paths", "files", "own_process", "dtrain"}

SOURCES = sorted((ROOT / "dtrain").rglob("*.py"))
LAUNCHERS = sorted((ROOT / "launchers").rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "dtrain").with_suffix("").parts
    return "dtrain" if parts == ("__init__",) else parts[0]


def imported(node: ast.AST, path: Path) -> Iterator[str]:
    """Full names of the modules that one statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
        base = ".".join([*package, *([node.module] if node.module else [])])
        yield from ([f"{base}.{alias.name}" for alias in node.names] if base in {"dtrain", ""} else [base])


def everywhere(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        yield from imported(node, path)


def at_load(body: list[ast.stmt], path: Path) -> Iterator[str]:
    """What runs when the module loads: not in functions, not under TYPE_CHECKING."""
    for node in body:
        yield from imported(node, path)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from at_load(node.orelse, path)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in ("body", "orelse", "finalbody"):
                yield from at_load(getattr(node, part, []), path)
            for handler in getattr(node, "handlers", []):
                yield from at_load(handler.body, path)


def rooms_in(names: Iterator[str]) -> set[str]:
    parts = (name.split(".") for name in names if name.split(".")[0] == "dtrain")
    return {part[1] if len(part) > 1 and part[1] in FLOOR else "dtrain" for part in parts}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    lower = {other for other, floor in FLOOR.items() if floor < FLOOR[room]}
    wrong = rooms_in(everywhere(path)) - lower - {room} - MAY_ALSO.get(room, set())
    assert not wrong, f"{room} may not import {sorted(wrong)}"


@pytest.mark.parametrize("path", [*SOURCES, *LAUNCHERS], ids=named)
def test_heavy_parts_load_only_where_they_work(path: Path) -> None:
    if path in SOURCES and room_of(path) in MAY_BE_HEAVY:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    heavy = {name.split(".")[0] for name in at_load(tree.body, path)} & HEAVY
    assert not heavy, f"import {sorted(heavy)} inside the function that needs it"


@pytest.mark.parametrize("path", LAUNCHERS, ids=named)
def test_launchers_know_nothing_of_the_client(path: Path) -> None:
    """A launcher starts a run somewhere. Which runs there are, and how one comes to be, is the client's."""
    found = {name for name in everywhere(path) if name.split(".")[0] == "dtrain"}
    allowed = LAUNCHERS_MAY_IMPORT | {"launch", "cloud"}
    wrong = {name for name in found if name.split(".")[1:2] != [] and name.split(".")[1] not in allowed}
    assert not wrong | (launch_modules(path) & CLIENT)


def launch_modules(path: Path) -> set[str]:
    """The modules of dtrain.launch that a file imports, whichever way."""
    froms = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.module]
    named = {alias.name for node in froms if node.module == "dtrain.launch" for alias in node.names}
    return named | {str(node.module).split(".")[2] for node in froms if str(node.module).startswith("dtrain.launch.")}


@pytest.mark.parametrize("path", [*SOURCES, *LAUNCHERS], ids=named)
def test_nothing_imports_a_launcher_by_name(path: Path) -> None:
    wrong = {name for name in everywhere(path) if name.split(".")[0] in {"launchers", "dtrain_launchers"}}
    assert not wrong or path in LAUNCHERS, "launchers are found through entry points"


LIGHT_COMMANDS = [
    ["--help"],
    ["plan", "configs/storyteller-tiny.yaml", "--profile", "cpu", "--json"],
    ["plan", "configs/storyteller.yaml", "--profile", "a100x8", "--json"],
    ["config", "show", "configs/storyteller.yaml"],
    ["profiles"],
]


@pytest.mark.parametrize("args", LIGHT_COMMANDS, ids=" ".join)
def test_planning_never_loads_torch(args: list[str]) -> None:
    program = (
        "import sys, json\n"
        "from dtrain.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    code = end.code or 0\n"
        f"heavy = sorted({HEAVY!r} & set(sys.modules))\n"
        "print(json.dumps([code, heavy]), file=sys.stderr)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, *args], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert json.loads(ran.stderr.splitlines()[-1]) == [0, []], ran.stderr


def test_the_rule_sees_what_it_forbids() -> None:
    """The helpers above would notice: a guard that cannot fail guards nothing."""
    path = ROOT / "dtrain" / "planner" / "made_up.py"
    tree = ast.parse("import torch.nn\nfrom dtrain import cli\ndef later():\n    import numpy\n")
    assert {name.split(".")[0] for name in at_load(tree.body, path)} & HEAVY == {"torch"}
    assert rooms_in(name for node in ast.walk(tree) for name in imported(node, path)) == {"cli"}
