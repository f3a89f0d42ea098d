"""A third party's launcher: a real package with an entry point, installed by pip, passing the contract."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtrain.errors import BadInput, LauncherRefused, PartMissing
from dtrain.launch.api import Launcher
from dtrain.launch.load import known, load, load_all
from tests.launch.launcher_contract import LauncherContract

EXAMPLE = Path(__file__).parents[2] / "docs" / "launchers.md"
PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "dtrain-desk"
version = "1.0"

[project.entry-points."dtrain.launchers"]
desk = "dtrain_desk:DeskLauncher"
unfinished = "dtrain_desk:Unfinished"
needy = "dtrain_desk.needy:Needy"
crashing = "dtrain_desk.crashing:Crashing"
local = "dtrain_desk:Unfinished"

[tool.setuptools]
packages = ["dtrain_desk"]
"""


def example_code() -> str:
    """The plugin printed in docs/launchers.md: what the page says is what is tested."""
    text = EXAMPLE.read_text(encoding="utf-8")
    block = text.split("```python\n# dtrain_desk/__init__.py\n")[1]
    return block.split("```")[0]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    package = source / "dtrain_desk"
    package.mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (package / "__init__.py").write_text(example_code() + "\n\nclass Unfinished:\n    name = 'unfinished'\n")
    (package / "needy.py").write_text("import a_cloud_library_nobody_has\n")
    (package / "crashing.py").write_text("raise RuntimeError('boom')\n")
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, "--target", str(target), str(source)], check=True)
    sys.path.insert(0, str(target))
    importlib.invalidate_caches()
    yield target
    sys.path.remove(str(target))
    for name in [name for name in sys.modules if name.startswith("dtrain_desk")]:
        del sys.modules[name]


@pytest.mark.usefixtures("installed")
class TestThirdParty(LauncherContract):
    @pytest.fixture
    def launcher(self, installed: Path) -> Launcher:
        return load("desk")


def test_the_example_is_short() -> None:
    assert len(example_code().strip().splitlines()) < 80


@pytest.mark.usefixtures("installed")
def test_ours_wins_over_a_namesake() -> None:
    assert type(load("local")).__module__ == "dtrain_launchers.local"


@pytest.mark.usefixtures("installed")
def test_broken_plugins_are_named_and_do_not_hurt_the_others() -> None:
    working, broken = load_all()
    assert {"desk", "local"} <= set(working)
    assert {"unfinished", "needy", "crashing"} <= set(broken)
    assert "dtrain-desk" in broken["crashing"].message
    assert "boom" in broken["crashing"].message


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("unfinished", LauncherRefused, "check, render, submit, status, logs, cancel"),
        ("needy", PartMissing, "a_cloud_library_nobody_has"),
        ("crashing", LauncherRefused, "boom"),
    ],
)
def test_a_broken_plugin_that_is_asked_for_is_an_error(name: str, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        load(name)


def test_an_unknown_launcher_gets_the_nearest_name_and_the_list() -> None:
    with pytest.raises(BadInput) as caught:
        load("lokal")
    assert caught.value.fix == "did you mean --on local?"
    assert "local" in str(caught.value.allowed)
    assert "local" in known()
