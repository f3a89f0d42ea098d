"""The logs of a run as one stream of lines: ranks named, the one that failed first at the top."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dtrain.launch.ending import Ending
from dtrain.paths import RunPaths

FOLLOW_SECONDS = 0.2


@dataclass
class LogFile:
    """One file and how far it was read. Lines are handed out whole; the unfinished last one only at the end."""

    label: str
    path: Path
    offset: int = 0

    def new_lines(self, everything: bool = False) -> list[str]:
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                chunk = stream.read()
        except FileNotFoundError:
            return []
        if not everything:
            chunk = chunk[: chunk.rfind(b"\n") + 1]
        self.offset += len(chunk)
        return [f"[{self.label}] {line}" for line in chunk.decode(errors="replace").splitlines()]


def log_files(paths: RunPaths, rank: int | None = None) -> list[LogFile]:
    """The first failing rank, then the supervisors and torchrun, then the other ranks. `rank` picks one."""
    ranks = sorted(_ranks_with_logs(paths))
    if rank is not None:
        return [LogFile(f"rank {rank}", paths.rank_log(rank))]
    ending = Ending.read(paths)
    first = [ending.rank] if ending is not None and ending.rank in ranks else []
    files = [LogFile(f"rank {number}", paths.rank_log(number)) for number in first]
    files += [LogFile("launch", paths.launch_log), *_of_several_nodes(paths)]
    return files + [LogFile(f"rank {number}", paths.rank_log(number)) for number in ranks if number not in first]


def _of_several_nodes(paths: RunPaths) -> list[LogFile]:
    """What the batch system's script said, and the other nodes' supervisors."""
    numbers = (path.stem.removeprefix("launch-") for path in paths.logs.glob("launch-*.log"))
    nodes = sorted(int(number) for number in numbers if number.isdigit())
    job = [LogFile("job", paths.job_log)] if paths.job_log.exists() else []
    return job + [LogFile(f"node {number}", paths.node(number).log) for number in nodes]


def _ranks_with_logs(paths: RunPaths) -> list[int]:
    numbers = (path.stem.removeprefix("rank-") for path in paths.logs.glob("rank-*.log"))
    return [int(number) for number in numbers if number.isdigit()]


def merged(paths: RunPaths, follow: bool, is_over: Callable[[], bool], rank: int | None = None) -> Iterator[str]:
    """All lines so far; with `follow`, new ones as they come until the run is over."""
    files = {file.label: file for file in log_files(paths, rank)}
    for file in files.values():
        yield from file.new_lines(everything=not follow)
    while follow:
        over = is_over()  # asked before the last look, so that no line is missed
        for file in log_files(paths, rank):
            yield from files.setdefault(file.label, file).new_lines(everything=over)
        if over:
            return
        time.sleep(FOLLOW_SECONDS)


def last_lines(path: Path, lines: int = 20) -> list[str]:
    """The end of a log."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 64 * 1024))
            return stream.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []
