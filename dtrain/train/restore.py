"""Going on from the newest good checkpoint: its states into a fresh engine, whatever ranks and ZeRO stage wrote it.

    same cut       each rank reads its own file once: hashed and put in its place at the same time, and while the
                   optimizer's states are still read, the ranks already exchange the weights
    another cut    every rank verifies a share of the files, then reads the pieces it needs

A damaged file is noticed when its states are in place already: those of the checkpoint before it then replace them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import torch

from dtrain.errors import RunFailed
from dtrain.paths import RunPaths
from dtrain.train import checkpoint, state_files
from dtrain.train.checkpoint import Checkpoint, States
from dtrain.train.leaves import LeafReader
from dtrain.train.optimizers import page_again
from dtrain.train.own_file import Filling, OwnFile
from dtrain.train.partitions import Partition, partitions, take_over
from dtrain.train.ranks import Ranks


def newest(
    states: States, paths: RunPaths, ranks: Ranks, accept: Callable[[Checkpoint], None] = lambda found: None
) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint that the states are of now (None: there was none), and a line for each damaged one passed over.

    Collective. `accept` may refuse one by raising. RunFailed when there are checkpoints and none is good.
    """
    folders, damaged = _on_every_machine(paths, ranks)
    for folder in folders:
        problem = _first(ranks, checkpoint.wrong_on_the_face(folder, may_lack_files=True))
        if problem is None:
            found = checkpoint.read(folder)
            accept(found)
            problem = load(states, found, ranks)
        if problem is None:
            return found, damaged
        damaged.append(f"{folder.name}: {problem}")
    if damaged:
        raise RunFailed(
            f"no checkpoint can be used: {'; '.join(damaged)}", file=str(paths.checkpoints),
            fix="missing files may lie on other machines: `dtrain resume RUN` brings them here. Damaged ones: remove "
            "their folders, then `dtrain resume RUN --force` begins again at step 0",
        )  # fmt: skip
    return None, []


def _on_every_machine(paths: RunPaths, ranks: Ranks) -> tuple[list[Path], list[str]]:
    """The newest first, and a line for each that only some of the ranks see: machines were cut off at the same save."""
    folders = checkpoint.newest_first(paths)
    seen = [set(names) for names in ranks.gather([folder.name for folder in folders])]
    common, known = set.intersection(*seen), set.union(*seen)
    if known and not common:
        raise RuntimeError("ranks see different checkpoints: is the run's folder shared by all nodes?")
    return [folder for folder in folders if folder.name in common], [
        f"{name}: it is not on every machine" for name in sorted(known - common)
    ]


def load(states: States, found: Checkpoint, ranks: Ranks) -> str | None:
    """Put its states in place. What is wrong with it, the same on every rank; the states are of no use then."""
    mine = partitions(states.model, states.optimizer)
    own = _file_with(mine, found, ranks)
    digest = found.leaves_sha256.get(own.path.name) if own is not None else None
    as_it_was = all(ranks.gather(digest is not None and found.world == ranks.world))
    with torch.no_grad():
        if as_it_was and own is not None:
            problem = _own_filled(states, own, mine, digest) or _own_is_damaged(found, own, ranks)
        else:
            problem = _read_anew(states, mine, found, ranks)
    problem = _first(ranks, problem)
    if problem is None:
        states.set_scaler_numbers(state_files.extra_of(found.folder, ranks.rank)["scaler"])
    return problem


def _file_with(mine: Sequence[Partition], found: Checkpoint, ranks: Ranks) -> OwnFile | None:
    """That holds exactly these partitions: this rank's own, or, where ZeRO cuts nothing, one of a whole copy."""
    whole = sorted(found.folder.glob("rank-*.safetensors")) if found.zero_stage == 0 else []
    files = (OwnFile.of_same_cut(path, mine) for path in [state_files.state_file(found.folder, ranks.rank), *whole])
    return next((file for file in files if file is not None), None)


def _own_is_damaged(found: Checkpoint, read: OwnFile, ranks: Ranks) -> str | None:
    """Of this rank's file where another one was read: every byte of a checkpoint is verified."""
    own = state_files.state_file(found.folder, ranks.rank)
    digest = found.leaves_sha256.get(own.name)
    if read.path == own or digest is None:
        return None
    try:
        with closing(LeafReader()) as reader:
            return None if reader.digest(own) == digest else f"{own.name} is damaged"
    except OSError as error:
        return f"{own.name}: {error}"


def _own_filled(states: States, own: OwnFile, mine: Sequence[Partition], digest: str | None) -> str | None:
    problem = None
    with Filling(own, mine) as filling:
        try:
            filling.wait_for_masters()
        except OSError as error:
            problem = f"{own.path.name}: {error}"
        take_over(states.optimizer)  # collective: whatever became of this rank's masters
        try:
            if filling.digest() != digest:
                problem = f"{own.path.name} is damaged"
        except OSError as error:
            problem = f"{own.path.name}: {error}"
    page_again(states.optimizer)
    return problem


def _read_anew(states: States, mine: Sequence[Partition], found: Checkpoint, ranks: Ranks) -> str | None:
    problem = _first(ranks, checkpoint.what_is_wrong(found.folder, ranks.rank, ranks.world))
    if problem is None:
        state_files.read(found.folder, mine)
        take_over(states.optimizer)
        page_again(states.optimizer)
    return problem


def _first(ranks: Ranks, problem: str | None) -> str | None:
    return next((told for told in ranks.gather(problem) if told is not None), None)
