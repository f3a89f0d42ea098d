"""Saving beside training: the step pays for a copy in host memory, a thread of each rank writes it to the disk.

    main thread   ──wait for the last save──▶ copy ──▶ next step …
    writer        ──write, hash, fsync──▶ all ranks agree ──▶ rank 0: manifest, rename, forget old ones

A disk that is slow delays the next save; one that is full or broken fails this save on all ranks, and the checkpoints
that are there stay as they are. Neither ends a run.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from dtrain.paths import RunPaths
from dtrain.train import checkpoint, state_files, tensor_file
from dtrain.train.checkpoint import Keep, States
from dtrain.train.loop import Progress
from dtrain.train.partitions import partitions
from dtrain.train.ranks import Ranks, with_own_group
from dtrain.units import gib

SLOW_SECONDS = 5.0
"""Training that stood still for longer, because the last save was not done, is worth a word."""


@dataclass(frozen=True)
class Outcome:
    """How a save ended, the same on every rank."""

    step: int
    problem: str | None
    seconds: float
    """From the copy to the rename."""
    bytes: int
    """Of all ranks' files."""


class Saver:
    """One per rank, all of them called at the same steps."""

    def __init__(
        self, states: States, paths: RunPaths, ranks: Ranks, keep: Keep, about: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        """`about`: what a manifest tells beside the step. Collective: the writers get a process group of their own."""
        self.completes = completes_here(paths, ranks)
        if self.completes:
            checkpoint.sweep_parts(paths)
        self.states = states
        self.paths = paths
        self.ranks = with_own_group(ranks)
        self.keep = keep
        self.about = about
        self.say = say
        self.last: Outcome | None = None
        """Of the save that ended last."""
        self.seconds = 0.0
        """That training stood still for saves, in all."""
        self._host = tensor_file.HostCopy()
        self._thread: threading.Thread | None = None

    def save(self, progress: Progress) -> float:
        """Begin to save. Seconds that training stands still for it: until the last save has ended, and for the copy."""
        started = time.perf_counter()
        self.wait()
        waited = time.perf_counter() - started
        if waited > SLOW_SECONDS and self.last is not None:
            self.say(
                f"training waited {waited:.0f} s for the disk: the checkpoint of step {self.last.step} "
                f"({gib(self.last.bytes):.2f} GiB) took {self.last.seconds:.0f} s; a larger save_steps waits less often"
            )
        extra = {"scaler": self.states.scaler_numbers()}
        mine = partitions(self.states.model, self.states.optimizer)
        content = state_files.content_of(self._copy, mine, self.states.zero_stage == 0, extra)
        swapped = any(one.files is not None for one in mine)  # to a drive, because host memory is short
        copied = not swapped and (self._host.is_there or fits_in_host_memory(content.bytes))
        if copied:
            content = self._host.of(content)
        self._thread = threading.Thread(target=self._write, args=(content, replace(progress)), daemon=True)
        self._thread.start()
        if not copied:
            self.wait()
        seconds = time.perf_counter() - started
        self.seconds += seconds
        return seconds

    @property
    def _copy(self) -> int:
        """Of the model; a machine that does not see the first one's files has a first copy of its own."""
        return 0 if self.completes and self.ranks.tensor_parallel == 1 else self.ranks.model_copy

    def wait(self) -> Outcome | None:
        """The last save, once it has ended; None when there was none."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self.last

    def _write(self, content: tensor_file.Content, progress: Progress) -> None:
        started = time.perf_counter()
        files: dict[str, dict[str, Any]] = {}
        try:
            files, problem = self._write_parts(content, progress.step)
            if problem is None:
                problem = self._agree(self._complete(files, progress))
        except Exception as error:  # another rank is gone: the main thread hears of it too
            problem = f"{type(error).__name__}: {error}"
        size = sum(about["bytes"] for about in files.values())
        self.last = Outcome(progress.step, problem, time.perf_counter() - started, size)
        if problem is not None:
            self.say(f"WARNING: the checkpoint of step {progress.step} could not be written: {problem}")
            self.say("training goes on; the checkpoints before it are whole. Free space on that disk, or repair it")

    def _write_parts(self, content: tensor_file.Content, step: int) -> tuple[dict[str, dict[str, Any]], str | None]:
        """Every rank writes its file. What all of them wrote, and the first failure of any."""
        part = checkpoint.part_of(self.paths.checkpoint(step))
        written, reason = {}, None
        try:
            part.mkdir(parents=True, exist_ok=True)
            file = state_files.state_file(part, self.ranks.rank)
            written = {file.name: asdict(tensor_file.write(file, content))}
        except OSError as error:
            reason = f"rank {self.ranks.rank}: {error}"
        told = self.ranks.gather((written, reason))
        problem = next((reason for _, reason in told if reason is not None), None)
        if problem is not None and self.completes:
            shutil.rmtree(part, ignore_errors=True)
        return {name: about for files, _ in told for name, about in files.items()}, problem

    def _complete(self, files: Mapping[str, Any], progress: Progress) -> str | None:
        """Rank 0 makes a checkpoint of the parts; where machines do not share the folder, one rank of each does, and
        all these parts of a checkpoint have the same manifest."""
        if not self.completes:
            return None
        final = self.paths.checkpoint(progress.step)
        manifest = {
            "schema_version": 1, "step": progress.step, "progress": asdict(progress), "time": round(time.time(), 3),
            "world": self.ranks.world, "zero_stage": self.states.zero_stage, **self.about, "files": files,
        }  # fmt: skip
        try:
            checkpoint.complete(final, manifest)
        except OSError as error:
            shutil.rmtree(checkpoint.part_of(final), ignore_errors=True)
            return str(error)
        checkpoint.forget_old(self.paths, progress.step, progress.best_step, self.keep)
        return None

    def _agree(self, problem: str | None) -> str | None:
        return next((told for told in self.ranks.gather(problem) if told is not None), None)


def completes_here(paths: RunPaths, ranks: Ranks) -> bool:
    """Whether this rank turns parts into checkpoints: rank 0, and the first rank of each machine that does not see
    rank 0's folder. Collective."""
    token = paths.run / f".seen-by-all-{secrets.token_hex(8)}"
    token = ranks.gather(token)[0]
    if ranks.is_first:
        paths.run.mkdir(parents=True, exist_ok=True)
        token.touch()
    ranks.wait()
    seen = (paths.run / token.name).exists()
    ranks.wait()
    if ranks.is_first:
        token.unlink(missing_ok=True)
    return ranks.is_first or (ranks.local_rank == 0 and not seen)


def fits_in_host_memory(bytes_of_a_rank: int) -> bool:
    """Whether all ranks of this machine can hold a copy of their states. If not, the step waits for the disk."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return bytes_of_a_rank * local < 0.8 * _available_bytes()


def _available_bytes() -> int:
    """What the kernel would hand out without swapping (proc(5), MemAvailable); 0 where it does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            told = dict(line.split(":", 1) for line in stream)
        return int(told["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0
