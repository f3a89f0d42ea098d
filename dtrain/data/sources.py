"""Rows of a dataset, read when asked: local JSON with our own reader, the rest through `datasets` (see `hub.py`)."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dtrain.data.pack import IntArray
from dtrain.errors import BadInput

Row = dict[str, Any]


class Source(Protocol):
    """Rows that can be read in any order."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever a row does."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int]) -> list[Row]:
        """The rows of these numbers (from 0). BadInput where one cannot be read."""

    def where(self, row: int) -> tuple[str, int | None]:
        """File and line (from 1) of a row; a source without lines knows only its name."""


@dataclass(frozen=True, eq=False)
class JsonLines:
    """A file with a JSON object on each line; blank lines are no rows."""

    file: Path
    fingerprint: str
    starts: IntArray = field(repr=False)
    lines: IntArray = field(repr=False)
    _bytes: mmap.mmap | bytes = field(repr=False)

    @classmethod
    def open(cls, file: Path) -> JsonLines:
        starts, lines, digest, position = [], [], hashlib.sha256(), 0
        with file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                digest.update(line)
                if line.strip():
                    starts.append(position)
                    lines.append(number)
                position += len(line)
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if position else b""
        return cls(file, digest.hexdigest(), _int64([*starts, position]), _int64(lines), content)

    def __len__(self) -> int:
        return len(self.lines)

    def read(self, rows: Sequence[int]) -> list[Row]:
        return [self._row(row) for row in rows]

    def where(self, row: int) -> tuple[str, int | None]:
        return str(self.file), int(self.lines[row])

    def _row(self, row: int) -> Row:
        text = self._bytes[self.starts[row] : self.starts[row + 1]]
        try:
            found = json.loads(text.removeprefix(b"\xef\xbb\xbf"))
            if _may_hold_surrogates(text):
                json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise self._error(row, _half_a_character(row, error), fix=_MEND_SURROGATE) from None
        except (ValueError, RecursionError) as error:
            raise self._broken(row, text, error) from None
        if not isinstance(found, dict):
            raise self._error(row, f"row {row + 1} is {_kind(found)}, not an object with columns")
        return found

    def _broken(self, row: int, text: bytes, error: Exception) -> BadInput:
        shown = text.strip()[-60:].decode("utf-8", "replace")
        encoding = isinstance(error, UnicodeDecodeError)
        how = "not UTF-8 text" if encoding else f"not a whole JSON object ({error})"
        if row == 0 and _is_json(self._bytes[:]):
            return self._error(0, "the file is one JSON value over several lines, not rows", fix=_ONE_A_LINE)
        fix = "save the file as UTF-8" if encoding else "complete this line, or delete it if it was cut off"
        return self._error(row, f"row {row + 1} is {how}; it ends in {shown!r}", fix=fix)

    def _error(self, row: int, message: str, fix: str | None = None) -> BadInput:
        return BadInput(message, file=str(self.file), line=int(self.lines[row]), fix=fix)


def _may_hold_surrogates(text: bytes) -> bool:
    return b"\\ud" in text or b"\\uD" in text


def _half_a_character(row: int, error: UnicodeEncodeError) -> str:
    return f"row {row + 1} holds half of a character ({error.object[error.start]!a}), which is no text"


_MEND_SURROGATE = "write the character whole: text cut in the middle of a \\ud83d\\ude00 pair leaves such a half"


def _refuse_surrogates(file: Path, rows: Sequence[Any]) -> None:
    for number, row in enumerate(rows):
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise BadInput(_half_a_character(number, error), file=str(file), fix=_MEND_SURROGATE) from None


@dataclass(frozen=True, eq=False)
class JsonArray:
    """A file that holds one JSON list of objects."""

    file: Path
    fingerprint: str
    rows: list[Any] = field(repr=False)

    @classmethod
    def open(cls, file: Path) -> JsonArray:
        content = file.read_bytes()
        try:
            rows = json.loads(content.removeprefix(b"\xef\xbb\xbf"))
            if _may_hold_surrogates(content):
                _refuse_surrogates(file, rows)
        except json.JSONDecodeError as error:
            whole = _objects_before(content, error.pos)
            raise BadInput(
                f"not a whole JSON list ({error.msg}); rows 1 to {whole} are complete, row {whole + 1} is not",
                file=str(file), line=error.lineno, fix="complete the file, or write one JSON object a line (.jsonl)",
            ) from None  # fmt: skip
        except (ValueError, RecursionError) as error:
            raise BadInput(f"not a JSON list that can be read ({error})", file=str(file)) from None
        return cls(file, hashlib.sha256(content).hexdigest(), rows)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Sequence[int]) -> list[Row]:
        for row in rows:
            if not isinstance(self.rows[row], dict):
                words = f"row {row + 1} is {_kind(self.rows[row])}, not an object with columns"
                raise BadInput(words, file=str(self.file))
        return [self.rows[row] for row in rows]

    def where(self, row: int) -> tuple[str, int | None]:
        return str(self.file), None


@dataclass(frozen=True, eq=False)
class Joined:
    """Several sources, one after another."""

    parts: tuple[Source, ...]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256("|".join(part.fingerprint for part in self.parts).encode()).hexdigest()

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def read(self, rows: Sequence[int]) -> list[Row]:
        found: list[Row] = []
        for part, within in self._by_part(rows):
            found.extend(part.read(within))
        return found

    def where(self, row: int) -> tuple[str, int | None]:
        [(part, within)] = self._by_part([row])
        return part.where(within[0])

    def _by_part(self, rows: Sequence[int]) -> list[tuple[Source, list[int]]]:
        """Runs of neighbouring rows of one part, in the order asked."""
        ends = np.cumsum([len(part) for part in self.parts])
        runs: list[tuple[Source, list[int]]] = []
        for row in rows:
            index = int(np.searchsorted(ends, row, side="right"))
            part = self.parts[index]
            if not runs or runs[-1][0] is not part:
                runs.append((part, []))
            runs[-1][1].append(int(row) - int(ends[index]) + len(part))
        return runs


@dataclass(frozen=True, eq=False)
class Selected:
    """Some rows of a source."""

    source: Source
    rows: npt.NDArray[np.int64]

    @property
    def fingerprint(self) -> str:
        chosen = hashlib.sha256(np.ascontiguousarray(self.rows, dtype="<i8").tobytes()).hexdigest()
        return hashlib.sha256(f"{self.source.fingerprint}[{chosen}]".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Sequence[int]) -> list[Row]:
        return self.source.read(self.rows[np.asarray(rows, dtype=np.int64)].tolist())

    def where(self, row: int) -> tuple[str, int | None]:
        return self.source.where(int(self.rows[row]))


def open_json(file: Path) -> Source:
    """A .json or .jsonl file, whichever of the two shapes it really has."""
    with file.open("rb") as stream:
        first = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return JsonArray.open(file) if first == b"[" else JsonLines.open(file)


def joined(parts: Sequence[Source]) -> Source:
    return parts[0] if len(parts) == 1 else Joined(tuple(parts))


_ONE_A_LINE = "write one JSON object a line (.jsonl), or one list of objects"


def _int64(values: Sequence[int]) -> IntArray:
    return np.asarray(values, dtype=np.int64)


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}
    return names.get(type(value), "empty (null)")


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _objects_before(content: bytes, end: int) -> int:
    """How many complete objects of a broken list come before byte `end`."""
    text, decoder = content.decode("utf-8", "replace"), json.JSONDecoder()
    position, whole = text.index("[") + 1, 0
    while position < end:
        position += len(text[position:end]) - len(text[position:end].lstrip(" \t\r\n,"))
        try:
            _, position = decoder.raw_decode(text, position)
        except ValueError:
            break
        whole += 1
    return whole
