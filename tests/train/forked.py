"""Starts ranks of `tests.train.cases` in no time: one process imports everything once and forks every rank.

Reads a line of JSON for each start, `{"world", "folder"}`, and answers with the exit codes of its ranks. Each
rank is a process of its own with a process group of its own; its words are in FOLDER/rank-R.log.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from tests.train.meeting import meeting


def load_libraries() -> None:
    """Whatever a rank would import at its start or in its course."""
    import peft  # noqa: F401
    import torch
    import transformers.modeling_utils
    import transformers.models.llama.modeling_llama  # noqa: F401
    from deepspeed.runtime import engine  # noqa: F401
    from deepspeed.runtime.zero.muon import muon_optimizer  # noqa: F401 - DeepSpeed does it with the first optimizer
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")  # a thousand regular expressions, kept
    torch.set_num_threads(1)


def preload() -> None:
    load_libraries()
    from tests.train import cases  # noqa: F401


def start(world: int, folder: Path) -> list[int]:
    """Exit codes of the ranks, negative for a signal; the first that fails ends the others."""
    with meeting() as told:
        return ended([forked_rank(rank, world, folder, told) for rank in range(world)])


def ended(pids: list[int]) -> list[int]:
    world, codes = len(pids), dict[int, int]()
    while len(codes) < world:
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        if codes[pid]:
            for other in pids:
                if other not in codes:
                    os.kill(other, signal.SIGKILL)
    return [codes[pid] for pid in pids]


def forked_rank(rank: int, world: int, folder: Path, told: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
            **told,
        }  # fmt: skip
        sys.argv = ["cases", str(folder), str(folder / "cases.json")]
        from tests.train import cases

        cases.main()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries greet on stdout
    preload()
    gc.freeze()  # half a million imported objects: no collection of a rank need look through them
    for line in sys.stdin:
        told = json.loads(line)
        codes = start(told["world"], Path(told["folder"]))
        answers.write(json.dumps(codes) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
