"""Results come home over a line that breaks and lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dtrain.errors import BadInput, RunFailed, Unreachable
from dtrain.launch.digest import sha256_of
from dtrain.launch.fetch import Fetched, bring_home


class Line:
    """A source on this disk whose line is cut after so many bytes, once."""

    def __init__(self, folder: Path, cut_after: int | None = None) -> None:
        self.folder = folder
        self.cut_after = cut_after
        self.offsets: list[int] = []

    def read(self, name: str, offset: int) -> Iterator[bytes]:
        self.offsets.append(offset)
        data = (self.folder / name).read_bytes()[offset:]
        cut, self.cut_after = self.cut_after, None
        yield data[:cut]
        if cut is not None:
            raise Unreachable("cut")


@pytest.fixture
def far(tmp_path: Path) -> Path:
    (tmp_path / "far" / "sub").mkdir(parents=True)
    (tmp_path / "far" / "sub" / "model ; ü").write_bytes(bytes(range(256)) * 100)
    return tmp_path / "far"


def listing(folder: Path) -> dict[str, dict[str, object]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files}


def quiet(_: str) -> None:
    pass


def test_a_cut_fetch_goes_on_where_it_ended_and_a_second_one_brings_nothing(far: Path, tmp_path: Path) -> None:
    line, home = Line(far, cut_after=10_000), tmp_path / "home"
    with pytest.raises(Unreachable):
        bring_home(line, listing(far), home, quiet)
    assert not (home / "sub" / "model ; ü").exists()
    assert bring_home(line, listing(far), home, quiet) == Fetched(1, 15_600)
    assert line.offsets == [0, 10_000]
    assert listing(far).items() <= listing(home).items()
    assert bring_home(line, listing(far), home, quiet) == Fetched(1, 0)


def test_what_was_damaged_on_the_way_is_brought_again(far: Path, tmp_path: Path) -> None:
    line, home = Line(far, cut_after=10_000), tmp_path / "home"
    with pytest.raises(Unreachable):
        bring_home(line, listing(far), home, quiet)
    (part,) = home.rglob("*.part")
    part.write_bytes(b"x" * 10_000)
    assert bring_home(line, listing(far), home, quiet).brought_bytes == 15_600 + 25_600
    assert listing(far).items() <= listing(home).items()


def test_a_file_that_is_not_what_was_listed_is_an_error_and_not_kept(far: Path, tmp_path: Path) -> None:
    told = listing(far)
    (far / "sub" / "model ; ü").write_bytes(b"y" * 25_600)
    with pytest.raises(RunFailed, match="damaged or changes"):
        bring_home(Line(far), told, tmp_path / "home", quiet)
    assert not list((tmp_path / "home" / "sub").iterdir())


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "sub/../../out"])
def test_a_machine_does_not_say_where_outside_something_is_written(far: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(RunFailed, match="leads out"):
        bring_home(Line(far), {name: {"bytes": 1, "sha256": ""}}, tmp_path / "home", quiet)


def test_two_fetches_at_once_are_one(far: Path, tmp_path: Path) -> None:
    def second(_: str) -> None:
        with pytest.raises(BadInput, match="another fetch"):
            bring_home(Line(far), listing(far), tmp_path / "home", quiet)

    bring_home(Line(far), listing(far), tmp_path / "home", second)
