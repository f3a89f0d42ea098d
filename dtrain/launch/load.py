"""Launchers by name, through entry points: ours and anybody's. A broken one matters only when it is asked for."""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, metadata

from dtrain.errors import BadInput, DtrainError, LauncherRefused, PartMissing
from dtrain.launch.api import ENTRY_POINT_GROUP, Launcher


def known() -> dict[str, EntryPoint]:
    """Every launcher that some installed package offers, by name; dtrain's own win over a namesake."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name not in found or package_of(point) == "dtrain":
            found[point.name] = point
    return dict(sorted(found.items()))


def package_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown package"


def load(name: str) -> Launcher:
    """The launcher called `name`. BadInput if nobody offers it, PartMissing if its extra is not installed."""
    points = known()
    if name not in points:
        near = difflib.get_close_matches(name, points, n=1)
        fix = f"did you mean --on {near[0]}?" if near else "pip install the package that offers it"
        raise BadInput("no such launcher", key="--on", value=name, allowed=", ".join(points), fix=fix)
    return _made(points[name])


def load_all() -> tuple[dict[str, Launcher], dict[str, DtrainError]]:
    """All launchers that work, and for each of the others why it does not."""
    working: dict[str, Launcher] = {}
    broken: dict[str, DtrainError] = {}
    for name, point in known().items():
        try:
            working[name] = _made(point)
        except DtrainError as error:
            broken[name] = error
    return working, broken


def _made(point: EntryPoint) -> Launcher:
    """Somebody else's code runs here: whatever it raises is told as the plugin's fault."""
    try:
        launcher = point.load()()
    except ModuleNotFoundError as error:
        raise _part_missing(point, error) from error
    except PartMissing:  # it says itself what to install
        raise
    except Exception as error:
        raise LauncherRefused(
            f"the launcher {point.name!r} of {package_of(point)} does not load: {type(error).__name__}: {error}",
            key="--on",
            fix=f"update or uninstall {package_of(point)}",
        ) from error
    if not isinstance(launcher, Launcher):
        lacking = ", ".join(name for name in METHODS if not hasattr(launcher, name))
        raise LauncherRefused(
            f"the launcher {point.name!r} of package {package_of(point)} lacks: {lacking}", key="--on",
            fix="see docs/launchers.md, \"write a launcher\"",
        )  # fmt: skip
    return launcher


METHODS = ("name", "check", "render", "submit", "status", "logs", "cancel")


def _part_missing(point: EntryPoint, error: ModuleNotFoundError) -> PartMissing:
    what_for = f"the launcher {point.name!r}"
    if package_of(point) == "dtrain" and point.name in _extras():
        return PartMissing.of(str(error.name), point.name, what_for)
    return PartMissing(
        f"{error.name} is not installed, and {what_for} of package {package_of(point)} needs it",
        fix=f"pip install {error.name}, or see the package's own instructions",
    )


def _extras() -> list[str]:
    try:
        return metadata("dtrain").get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return []
