"""dtrain as a wheel for another machine: built from the checkout it runs from, or put together again as installed."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from importlib.metadata import Distribution, distribution
from pathlib import Path

from dtrain import __version__, assets, paths
from dtrain.errors import LauncherRefused
from dtrain.launch.digest import sha256_of

FOLDERS = ("dtrain", "launchers", "configs", "ds_configs", "slurm")
FILES = ("pyproject.toml", "README.md", "LICENSE")
"""What a wheel is built from."""
EPOCH = "315532800"
"""1980, the first year a zip can tell: the same sources give the same wheel."""


def wheel() -> Path:
    """A wheel of the dtrain that runs here; made once for the same sources."""
    root = assets.root()
    return _from_checkout(root) if (root / "pyproject.toml").is_file() else _from_installed(distribution("dtrain"))


@cache
def name() -> str:
    """What tells this dtrain from every other: its version, and in a checkout the sources."""
    root = assets.root()
    return f"{__version__}-{_digest_of(root)}" if (root / "pyproject.toml").is_file() else __version__


def constraints() -> str:
    """The pinned stack of the checkout; empty where dtrain was installed without it."""
    file = assets.root() / "constraints.txt"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _from_checkout(root: Path) -> Path:
    place = paths.home() / "wheels" / _digest_of(root)
    for made in place.glob("dtrain-*.whl"):
        return made
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        source = Path(scratch) / "source"
        for name in FOLDERS:
            shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in FILES:
            shutil.copy2(root / name, source / name)
        made = _built(source, Path(scratch))
        target = place / made.name
        made.replace(target)
    return target


def _built(source: Path, out: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    command += ["--disable-pip-version-check", "--wheel-dir", str(out), str(source)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = list(out.glob("dtrain-*.whl"))
    if done.returncode != 0 or not found:
        words = "\n  ".join(done.stderr.strip().splitlines()[-5:])
        raise LauncherRefused(
            f"dtrain's wheel cannot be built from the checkout\n  {words}", file=str(assets.root()),
            fix="pip install setuptools wheel",
        )  # fmt: skip
    return found[0]


def _digest_of(root: Path) -> str:
    """Of all sources, by name and content."""
    digest = hashlib.sha256()
    files = [path for name in FOLDERS for path in (root / name).rglob("*") if path.is_file()]
    for path in sorted([*files, *(root / name for name in FILES)]):
        if "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(root)} {sha256_of(path)}\n".encode())
    return digest.hexdigest()[:16]


def _from_installed(installed: Distribution) -> Path:
    """The files that pip wrote, zipped again with a RECORD of their own."""
    target = paths.home() / "wheels" / "installed" / f"dtrain-{__version__}-py3-none-any.whl"
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    record = []
    with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(installed.files or [], key=str):
            if not _belongs(str(file)):
                continue
            data = Path(str(file.locate())).read_bytes()
            archive.writestr(zipfile.ZipInfo(str(file)), data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            record.append(f"{file},sha256={digest},{len(data)}")
        name = f"dtrain-{__version__}.dist-info/RECORD"
        archive.writestr(zipfile.ZipInfo(name), "\n".join([*record, f"{name},,"]) + "\n")
    beside.replace(target)
    return target


def _belongs(name: str) -> bool:
    """To the wheel: not what the installer itself wrote."""
    written_by_pip = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
    return not name.startswith("..") and "__pycache__" not in name and not name.endswith(written_by_pip)
