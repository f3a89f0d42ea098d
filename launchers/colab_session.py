"""What the notebook starts on Colab: `python -m dtrain_launchers.colab_session PARCEL HERE KEPT`.

The run lies on the machine's own disk, since Drive is slow and promises no atomic rename. What must outlive the machine
is copied to Drive while it trains, and brought back when the notebook runs again on another one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from dtrain.errors import BadInput, DtrainError
from dtrain.files import read_json, write_whole
from dtrain.launch.digest import sha256_of
from dtrain.launch.ending import DONE, Ending, last_checkpoint
from dtrain.launch.standing import folder_status
from dtrain.own_process import die_with_parent
from dtrain.paths import RunPaths

LOOK_SECONDS = 1.0
"""How often it is asked whether there is a new checkpoint."""
SMALL_FILES_SECONDS = 30.0
"""How often metrics and logs go to Drive."""
NOT_KEPT = ("checkpoints", "heartbeats", "launch.json", "supervisor.json", "supervisor.lock", "fetch.lock")
"""In the run's `dtrain` folder: what means nothing on another machine, and checkpoints, which go by themselves."""
INPUTS = "inputs"


@dataclass
class Keeper:
    """Copies a run to a folder that outlives this machine. The newest checkpoint there is whole, or the one before."""

    paths: RunPaths
    kept: RunPaths
    copied_at: float = 0.0
    complaints: set[str] = field(default_factory=set)

    def keep(self, everything: bool = False) -> bool:
        """False where it could not be written: told once, the run goes on."""
        try:
            self._keep_checkpoint()
            if everything or time.monotonic() - self.copied_at > SMALL_FILES_SECONDS:
                self._keep_files()
                self.copied_at = time.monotonic()
        except FileNotFoundError:  # an old checkpoint was just removed, a file replaced: the next look sees the new one
            return False
        except OSError as error:
            self._complain(f"{error.filename or self.kept.output}: {error.strerror}")
            return False
        return True

    def _keep_checkpoint(self) -> None:
        step = last_checkpoint(self.paths)
        if step is None or last_checkpoint(self.kept) == step:
            return
        target = self.kept.checkpoint(step)
        part = target.with_name(f".{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(self.paths.checkpoint(step), part)
        part.rename(target)
        for other in self.kept.checkpoints.iterdir():
            if other != target:
                shutil.rmtree(other, ignore_errors=True)

    def _keep_files(self) -> None:
        """The run's end last: who sees it finds the rest. A run that goes on has no end any more."""
        if not self.paths.exit.exists():
            self.kept.exit.unlink(missing_ok=True)
        for name in sorted(_files_to_keep(self.paths), key=lambda one: one == "dtrain/exit.json"):
            source, target = self.paths.output / name, self.kept.output / name
            if not _is_same(source, target):
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(f".{target.name}.part")
                shutil.copy2(source, part)
                part.replace(target)

    def _complain(self, words: str) -> None:
        if words not in self.complaints:
            self.complaints.add(words)
            saved = last_checkpoint(self.kept)
            safe = f"the checkpoint of step {saved} is there" if saved is not None else "no checkpoint is there yet"
            print(f"[dtrain] cannot be kept: {words}; the run goes on, and {safe}", flush=True)


def _files_to_keep(paths: RunPaths) -> Iterator[str]:
    for path in sorted(paths.output.rglob("*")):
        parts = path.relative_to(paths.output).parts
        private = parts[0] == INPUTS or (parts[0] == "dtrain" and len(parts) > 1 and parts[1] in NOT_KEPT)
        if path.is_file() and not private and not any(part.endswith(".part") for part in parts):
            yield "/".join(parts)


def _is_same(source: Path, target: Path) -> bool:
    if not target.exists():
        return False
    one, other = source.stat(), target.stat()
    return one.st_size == other.st_size and one.st_mtime <= other.st_mtime


# --- before it starts ---------------------------------------------------------------------------------------------


def bring_back(kept: RunPaths, paths: RunPaths) -> None:
    """Of a run that began on another machine: its last checkpoint and what it had written."""
    if paths.run.exists() or not kept.run.exists():
        return
    beside = paths.output.with_name(f".{paths.output.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(kept.output, beside, ignore=shutil.ignore_patterns("*.part"))
    beside.rename(paths.output)


def place(parcel: Path, paths: RunPaths, about: dict[str, Any], from_drive: Path) -> None:
    """The run's documents and inputs, with their paths as they are here. BadInput for an input that is not on Drive."""
    for document in (paths.config, paths.plan, paths.about):
        text = (parcel / "run" / document.name).read_text(encoding="utf-8")
        write_whole(document, text.replace(about["folder"], str(paths.output)))
    packed = parcel / INPUTS
    if packed.exists():
        shutil.copytree(packed, paths.output / INPUTS, dirs_exist_ok=True)
    for name, digest in about["from_drive"].items():
        _take(from_drive / name, paths.output / name, digest)


def _take(source: Path, target: Path, digest: str) -> None:
    if not source.is_file():
        raise BadInput("a file of the run is not on Drive", file=str(source), fix="upload it there; see the first cell")
    if sha256_of(source) != digest:
        raise BadInput("not the file that was planned with", file=str(source), fix="upload it again, or launch again")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


# --- the run ------------------------------------------------------------------------------------------------------


DTRAIN = (sys.executable, "-P", "-m", "dtrain")


def runs_already(paths: RunPaths) -> bool:
    """The kernel alone was restarted: its run went on without it."""
    status = folder_status(paths)
    return status is not None and status.state == "running"


def command_for(paths: RunPaths) -> list[str]:
    """Watch it where it runs already, go on after a checkpoint, or begin."""
    if runs_already(paths):
        return [*DTRAIN, "attach", str(paths.output)]
    begins = ["--force"] if last_checkpoint(paths) is None else []
    return [*DTRAIN, "resume", str(paths.output), *begins]


def watched(command: list[str], keeper: Keeper, home: Path) -> int:
    """Its exit code, once everything is kept; 1 for a finished run whose result is not."""
    env = {**os.environ, "DTRAIN_HOME": str(home)}
    run = subprocess.Popen(command, env=env, preexec_fn=die_with_parent)

    def interrupted(number: int, frame: FrameType | None) -> None:
        """Save and stop; who only watches would leave the run alone."""
        if "attach" in command:
            subprocess.Popen([*DTRAIN, "stop", str(keeper.paths.output)], env=env)
        else:
            run.send_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, interrupted)
    over = threading.Event()
    keeping = threading.Thread(target=_keep_until, args=(keeper, over))
    keeping.start()
    try:
        code = run.wait()
    finally:
        over.set()
        keeping.join()
    kept = keeper.keep(everything=True)
    return code if kept or code else 1


def _keep_until(keeper: Keeper, over: threading.Event) -> None:
    while not over.wait(LOOK_SECONDS):
        keeper.keep()


def main(arguments: list[str]) -> int:
    parcel, here, kept_root = (Path(one) for one in arguments)
    about = read_json(parcel / "run" / "run.json")
    paths, kept = RunPaths(here / "runs" / about["id"]), RunPaths(kept_root / about["id"])
    ending = Ending.read(kept)
    if ending is not None and ending.code == DONE:
        print(f"[dtrain] this run is finished: {kept.output}", flush=True)
        return DONE
    try:
        bring_back(kept, paths)
        place(parcel, paths, about, kept_root)
    except DtrainError as error:
        print(f"error: {error}", flush=True)
        return error.exit_code
    return watched(command_for(paths), Keeper(paths, kept), here / "home")


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main(sys.argv[1:]))
