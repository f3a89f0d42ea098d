"""What a client asks of a machine where a run lies: `python -m dtrain.launch.agent VERB`, JSON in, a line of JSON out.

    hello    which dtrain this is
    files    which of these checksums lie in the machine's store, and how much of the others
    place    write a run's folder and link its inputs from the store
    start    start the run's supervisor, detached
    look     how the run stands, and what its files gained since the last look
    stop     end the run, letting it save unless at_once
    meeting  an address and a free port for the rendezvous of several machines
    link     the address and interface that lead to it
    reach    whether all of them reach each other over it
    results  the files that a fetch brings home, with their checksums

Each may be asked twice: the answer to the first may have been lost on the way.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from dtrain import __version__
from dtrain.errors import DtrainError, LauncherRefused
from dtrain.files import write_whole
from dtrain.launch import here, secrets
from dtrain.launch.api import Rendered
from dtrain.launch.bundle import INPUTS, PROJECT
from dtrain.launch.digest import sha256_of
from dtrain.launch.ending import Ending, put_aside
from dtrain.launch.network import link_towards
from dtrain.launch.nodes import meeting_point, parted
from dtrain.launch.spec import LaunchSpec, endpoint_of
from dtrain.launch.standing import folder_status, other_run
from dtrain.paths import RunPaths

LOOK_BYTES = 4 << 20
"""Most of one file that one look sends; the rest comes with the next."""
PLACED = "placed"
GROWING = ("metrics.jsonl", "logs/*.log")
"""Files of a run that only grow: sent from where the client stands."""
WHOLE = (
    "state.json", "data.json", "report.json", "samples.json", "wandb.json", "loss.png", "exit.json",
    "logs/*.error.json", "checkpoints/step-*/manifest.json",
)  # fmt: skip
"""Small files that are replaced whole: sent when they changed."""


def hello(told: Mapping[str, Any]) -> dict[str, Any]:
    return {"dtrain": __version__, "python": sys.executable}


def files(told: Mapping[str, Any]) -> dict[str, Any]:
    """`{"base", "digests"}` → `{"missing": {digest: bytes that are there}}`."""
    store = Store(Path(told["base"]))
    return {"missing": {digest: store.part_bytes(digest) for digest in told["digests"] if not store.has(digest)}}


def place(told: Mapping[str, Any]) -> dict[str, Any]:
    """`{"base", "folder", "run_id", "files", "inputs", "after"}`: the run's folder as it was rendered.

    → `{"state"}`: placed, or how the run stands there. A run that lives, or that ended later than `after` (the
    client's word for: I know that it ended, begin anew), is left alone.
    """
    paths = RunPaths(Path(told["folder"]))
    other = other_run(paths, told["run_id"])
    if other is not None:
        raise LauncherRefused(f"the folder holds another run: {other}", file=str(paths.output))
    with _lock(paths), _told_as_refused(paths.output):
        _begin_anew(paths, told.get("after"))
        if here.was_started(paths):
            return {"state": here.status(paths).state}
        store = Store(Path(told["base"]))
        for name, digest in told["inputs"].items():
            store.link(digest, paths.output / name)
        for name, text in told["files"].items():
            write_whole(paths.output / name, text)
    return {"state": PLACED}


def start(told: Mapping[str, Any]) -> dict[str, Any]:
    """`{"folder", "secrets"}`: the supervisor, detached. A run that was started is left alone."""
    paths = RunPaths(Path(told["folder"]))
    if here.was_started(paths):
        return {"started": False}
    command = here.supervise_command(paths)
    if not told.get("secrets"):
        here.start(paths, Rendered(commands=(command,)))
        return {"started": True}
    kept = secrets.keep(told["secrets"])
    try:
        here.start(paths, Rendered(commands=(secrets.with_secrets(kept, command),)))
    finally:
        kept.unlink(missing_ok=True)  # the run has read it, or never will
    return {"started": True}


def look(told: Mapping[str, Any]) -> dict[str, Any]:
    """`{"folder", "have"}` → the status and the news. The status is asked first: an ended run's files are complete."""
    paths = RunPaths(Path(told["folder"]))
    found = folder_status(paths)
    status = None if found is None else {"state": found.state, "exit_code": found.exit_code, "reason": found.reason}
    have = told.get("have", {})
    news = [*_growing(paths.run, have), *_whole(paths.run, have)]
    return {"status": status, "placed": paths.launch.exists(), "news": news, "checkpoints": _checkpoints(paths)}


def stop(told: Mapping[str, Any]) -> dict[str, Any]:
    """`{"folder", "run_id", "at_once", "wait_seconds"}`: returns when no process of the run is left here.

    It may end by itself for `wait_seconds`: the ranks of another machine told these ones to save.
    """
    paths = RunPaths(Path(told["folder"]))
    deadline = time.monotonic() + told["wait_seconds"]
    while here.status(paths).state == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    here.stop(paths, told["run_id"], at_once=told["at_once"])
    return {}


def meeting(told: Mapping[str, Any]) -> dict[str, Any]:
    """`{"folder", "machines"}`, addresses in order, this machine first → `{"meeting": "ADDRESS:PORT"}`.

    Where the run's share of this machine lives already, they meet where it waits.
    """
    paths = RunPaths(Path(told["folder"]))
    if here.was_started(paths):
        return {"meeting": endpoint_of(LaunchSpec.read(paths).ranks)}
    return {"meeting": meeting_point(told["machines"])}


def link(told: Mapping[str, Any]) -> dict[str, Any]:
    """`{"meeting"}` → `{"address", "interface"}`: this machine's end of the route to it."""
    return asdict(link_towards(parted(told["meeting"])[0]))


def reach(told: Mapping[str, Any]) -> dict[str, Any]:
    """`{"folder", "meeting", "names", "node"}` → `{"verdict"}`: can all machines reach each other and add numbers up?

    Asked of all at once; the first machine tells who is to blame, or None.
    """
    paths = RunPaths(Path(told["folder"]))
    verdict = paths.node(0).ending
    verdict.unlink(missing_ok=True)
    command = [sys.executable, "-P", "-m", "dtrain.launch.preflight", told["folder"], told["meeting"], *told["names"]]
    done = subprocess.run([*command, "--node", str(told["node"])], capture_output=True, text=True)
    ending = Ending.read_from(verdict)
    verdict.unlink(missing_ok=True)
    if ending is None and done.returncode != 0:
        return {"verdict": (done.stderr.strip().splitlines() or ["the preflight ended without a word"])[-1]}
    return {"verdict": ending and ending.reason}


def results(told: Mapping[str, Any]) -> dict[str, Any]:
    """`{"folder", "checkpoints": "none"|"last"|"all"|null}` → `{"files": {name: {bytes, sha256}}}`."""
    paths = RunPaths(Path(told["folder"]))
    wanted = _wanted_checkpoints(paths, told.get("checkpoints"))
    names = [name for name in _files_below(paths.output) if _is_result(name, wanted)]
    return {"files": {name: _about(paths.output / name) for name in names}}


# --- the store of shipped files -----------------------------------------------------------------------------------


class Store:
    """Files by their checksum, so that what two runs share is sent once."""

    def __init__(self, base: Path) -> None:
        self.folder = base / "files"

    def path(self, digest: str) -> Path:
        return self.folder / digest

    def part(self, digest: str) -> Path:
        """What came so far."""
        return self.folder / f".{digest}.part"

    def part_bytes(self, digest: str) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.part(digest)
        return part.stat().st_size if part.exists() else 0

    def has(self, digest: str) -> bool:
        return self.path(digest).exists() or self._accept(digest)

    def _accept(self, digest: str) -> bool:
        """A part that is whole becomes the file."""
        part = self.part(digest)
        if not part.exists() or sha256_of(part) != digest:
            return False
        part.replace(self.path(digest))
        return True

    def link(self, digest: str, target: Path) -> None:
        if not self.has(digest):
            self.part(digest).unlink(missing_ok=True)
            raise LauncherRefused(f"what arrived for {target.name} is not what was sent", file=str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.part")
        beside.unlink(missing_ok=True)
        try:
            os.link(self.path(digest), beside)
        except OSError:  # another file system, or one without links
            shutil.copyfile(self.path(digest), beside)
        beside.replace(target)  # a run may be reading the old one
        beside.unlink(missing_ok=True)  # a rename over a link to the same file does nothing


# --- parts of the verbs -------------------------------------------------------------------------------------------


def _begin_anew(paths: RunPaths, after: float | None) -> None:
    ending = Ending.read(paths)
    if ending is not None and after is not None and ending.ended <= after:
        put_aside(paths)


def _growing(run: Path, have: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for path in _matching(run, GROWING):
        name = str(path.relative_to(run))
        with path.open("rb") as stream:
            found = os.fstat(stream.fileno())
            known = have.get(name, {})
            same = known.get("inode") == found.st_ino and known.get("offset", 0) <= found.st_size
            offset = known["offset"] if same else 0
            stream.seek(offset)
            data = stream.read(LOOK_BYTES)
        if data or not same:
            yield {"name": name, "inode": found.st_ino, "offset": offset, "data": base64.b64encode(data).decode()}


def _whole(run: Path, have: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for path in _matching(run, WHOLE):
        name = str(path.relative_to(run))
        with contextlib.suppress(FileNotFoundError):  # an old checkpoint that is just being deleted
            found = path.stat()
            tag = f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"
            if have.get(name, {}).get("tag") != tag:
                yield {"name": name, "tag": tag, "data": base64.b64encode(path.read_bytes()).decode()}


def _matching(run: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted(path for pattern in patterns for path in run.glob(pattern))


def _checkpoints(paths: RunPaths) -> list[int]:
    found = (path.parent.name.removeprefix("step-") for path in paths.checkpoints.glob("step-*/manifest.json"))
    return sorted(int(step) for step in found if step.isdigit())


def _wanted_checkpoints(paths: RunPaths, said: str | None) -> set[str]:
    """Names of checkpoint folders. Not said: the last one, unless the run is done and has its model."""
    ending = Ending.read(paths)
    done = ending is not None and ending.state == "done"
    how_many = {"none": 0, "last": 1, "all": None}[said or ("none" if done else "last")]
    steps = _checkpoints(paths)
    kept = steps if how_many is None else steps[len(steps) - min(how_many, len(steps)) :]
    return {f"step-{step}" for step in kept}


NOT_HOME = (
    "config.yaml", "plan.json", "run.json", "launch.json", "supervisor.json", "supervisor.lock", "agent.lock",
    "heartbeats",
)  # fmt: skip
"""What a client has its own of, or what means nothing elsewhere. What a look brings is home already."""


def _is_result(name: str, checkpoints: set[str]) -> bool:
    parts = name.split("/")
    if any(part.endswith(".part") for part in parts) or parts[0] in (INPUTS, PROJECT):
        return False
    if parts[0] != "dtrain":
        return True
    if parts[1] == "checkpoints":
        return len(parts) > 2 and parts[2] in checkpoints
    inside = PurePosixPath(*parts[1:])
    return parts[1] not in NOT_HOME and not any(inside.match(pattern) for pattern in (*GROWING, *WHOLE))


def _about(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def _lock(paths: RunPaths) -> Iterator[None]:
    """Two clients at once: one after the other."""
    with _told_as_refused(paths.output):
        paths.run.mkdir(parents=True, exist_ok=True)
        handle = os.open(paths.run / "agent.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _told_as_refused(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LauncherRefused(
            f"the run's folder cannot be written: {error.strerror}", file=str(folder),
            fix="free space there, or take another place: launchers.ssh.base",
        ) from None  # fmt: skip


Verb = Callable[[Mapping[str, Any]], dict[str, Any]]
VERBS: dict[str, Verb] = {
    "hello": hello, "files": files, "place": place, "start": start, "look": look, "stop": stop,
    "meeting": meeting, "link": link, "reach": reach, "results": results,
}  # fmt: skip


def main(arguments: list[str]) -> int:
    return answer_to(VERBS, arguments[0])


def answer_to(verbs: Mapping[str, Verb], verb: str) -> int:
    """JSON on stdin → a line of JSON. Whatever the login shell printed before, the answer is the last line."""
    try:
        answer = verbs[verb](json.loads(sys.stdin.buffer.read() or b"{}"))
    except DtrainError as error:
        answer = {"error": error.as_json()}
    except OSError as error:
        answer = {"error": LauncherRefused(f"{error.strerror}", file=str(error.filename)).as_json()}
    print("\n" + json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
