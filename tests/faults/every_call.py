"""One saver, four saves, killed at its n-th change of the disk for every n: `python -m tests.faults.every_call DIR`.

Prints one JSON line: how many calls there are, and what was wrong with any checkpoint after any of the kills.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from dtrain.paths import RunPaths
from dtrain.train import tensor_file
from dtrain.train.checkpoint import Keep, States, newest_good, what_is_wrong
from dtrain.train.loop import Progress
from dtrain.train.ranks import Ranks
from dtrain.train.saver import Saver
from tests.faults.layer import Fault

SAVES = 4


def saves(paths: RunPaths) -> None:
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    ranks = Ranks(0, 0, 1, torch.device("cpu"))
    saver = Saver(States(model, optimizer, 0), paths, ranks, Keep(last=1), {}, print)
    large = tensor_file.DIRECT_FROM_BYTES
    for step in range(1, SAVES + 1):
        tensor_file.DIRECT_FROM_BYTES = 0 if step % 2 else large  # past the page cache, and through it
        saver.save(Progress(step=step))
        saver.wait()


def killed_at(paths: RunPaths, call: int) -> bool:
    """Whether there was such a call to be killed at."""
    pid = os.fork()
    if not pid:
        Fault(paths.checkpoints, "kill", call).install()
        saves(paths)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


def main() -> None:
    torch.optim.AdamW(torch.nn.Linear(1, 1).parameters())  # loads what every fork would load
    wrong, without, call = [], 0, 1
    while killed_at(paths := RunPaths(Path(sys.argv[1]) / str(call)), call):
        for folder in paths.checkpoints.glob("step-*"):
            problem = what_is_wrong(folder)
            wrong += [f"call {call}: {folder.name}: {problem}"] if problem else []
        without += newest_good(paths)[0] is None
        call += 1
    print(json.dumps({"calls": call - 1, "wrong": wrong, "without_a_good_one": without}))


if __name__ == "__main__":
    main()
