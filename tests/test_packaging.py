"""The wheel is whole and light: built from a clean copy, installed into a fresh environment, used outside the repo."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("dtrain", "launchers", "configs", "ds_configs", "slurm", "pyproject.toml", "README.md", "LICENSE")


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def listed_packages() -> set[str]:
    setuptools = project()["tool"]["setuptools"]  # type: ignore[index]
    return set(setuptools["packages"])


def test_every_package_folder_is_listed() -> None:
    found = {
        str(init.parent.relative_to(ROOT)).replace("/", ".").replace("launchers", "dtrain_launchers", 1)
        for top in ("dtrain", "launchers")
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert found == {name for name in listed_packages() if not name.startswith("dtrain._assets")}


def test_every_folder_of_python_is_a_package() -> None:
    folders = {source.parent for top in ("dtrain", "launchers") for source in (ROOT / top).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def run(*command: str | Path, cwd: Path, timeout: int = 120) -> subprocess.CompletedProcess[str]:
    """With nothing of this checkout or this environment in reach."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    env = kept | {"DTRAIN_HOME": str(cwd / "home"), "HF_HUB_OFFLINE": "1"}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("source")
    for name in COPIED:
        source, target = ROOT / name, copy / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    ran = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", copy / "out", copy, cwd=copy)
    assert ran.returncode == 0, ran.stderr
    [built] = (copy / "out").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder far from the checkout with `env/bin/dtrain` in it; only the light dependencies are there."""
    place = tmp_path_factory.mktemp("elsewhere")
    venv.create(place / "env", with_pip=True)
    ran = run(place / "env/bin/pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=place, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return place


@pytest.mark.slow
@pytest.mark.xdist_group("wheel")
class TestWheel:
    def test_it_carries_what_the_checkout_ships(self, wheel: Path) -> None:
        inside = set(zipfile.ZipFile(wheel).namelist())
        shipped = ("configs", "ds_configs", "slurm")
        wanted = {
            f"dtrain/_assets/{file.relative_to(ROOT)}"
            for folder in shipped
            for file in (ROOT / folder).rglob("*")
            if file.suffix in {".yaml", ".yml", ".json", ".jsonl", ".j2"}
        }
        assert len(wanted) >= 10
        assert wanted - inside == set()
        data = {
            str(file.relative_to(ROOT)) for file in (ROOT / "dtrain").rglob("*.json") if "__pycache__" not in file.parts
        }
        assert data - inside == set()
        assert "dtrain/py.typed" in inside
        assert any(name.endswith("licenses/LICENSE") for name in inside)
        assert not [name for name in inside if name.startswith(("tests/", "launchers/", "benchmarks/"))]

    def test_help_and_profiles_work(self, installed: Path) -> None:
        for args in (["--help"], ["profiles"], ["profiles", "--json"]):
            ran = run(installed / "env/bin/dtrain", *args, cwd=installed)
            assert ran.returncode == 0, ran.stderr
            assert ran.stdout

    def test_it_plans_the_shipped_file(self, installed: Path) -> None:
        where = "import dtrain.assets; print(dtrain.assets.shipped('configs/storyteller.yaml'))"
        file = run(installed / "env/bin/python", "-c", where, cwd=installed).stdout.strip()
        assert str(installed) in file
        ran = run(installed / "env/bin/dtrain", "plan", file, "--profile", "a100x8", "--json", cwd=installed)
        assert ran.returncode == 0, ran.stderr
        plan = json.loads(ran.stdout)
        assert plan["fits"] is True
        assert plan["profile"]["gpus"] == 8

    def test_launching_says_which_extra_to_install(self, installed: Path) -> None:
        where = "import dtrain.assets; print(dtrain.assets.root())"
        assets = Path(run(installed / "env/bin/python", "-c", where, cwd=installed).stdout.strip())
        file = assets / "configs" / "storyteller-tiny.yaml"
        ran = run(installed / "env/bin/dtrain", "launch", file, "--profile", "cpu", "--json", cwd=installed)
        assert ran.returncode == 4, ran.stdout + ran.stderr
        error = json.loads(ran.stdout)["error"]
        assert error["code"] == 4
        assert "pip install 'dtrain[train]'" in error["fix"]
        assert not (installed / "runs").exists()

    def test_what_is_missing_for_other_machines_is_told_by_the_doctor_and_by_launch(self, installed: Path) -> None:
        ran = run(installed / "env/bin/dtrain", "doctor", "--json", cwd=installed)
        assert ran.returncode == 0, ran.stderr
        found = {one["part"]: one for one in json.loads(ran.stdout)["findings"]}
        assert found["torch"]["state"] == "missing"
        assert found["launcher ssh"]["fix"] == found["launcher runpod"]["fix"] == "pip install 'dtrain[ssh]'"
        (installed / "a.yaml").write_text("base_model: gpt2\ndatasets: [{path: rows.jsonl}]\n")
        (installed / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
        asked = ("launch", "a.yaml", "--profile", "a100x1", "--on", "ssh", "--set", "launchers.ssh.hosts=[a]", "--json")
        ran = run(installed / "env/bin/dtrain", *asked, cwd=installed)
        assert ran.returncode == 4, ran.stdout + ran.stderr
        assert json.loads(ran.stdout)["error"]["fix"] == "pip install 'dtrain[ssh]'"
