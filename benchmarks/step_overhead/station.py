"""One rank of one contender, started by `trials.Running`."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback

from benchmarks.step_overhead.trials import Clock, TrialsOver, own_voice
from benchmarks.step_overhead.workload import Workload

LOOPS = {
    "dtrain": ("dtrain_loop", "run"),
    "bare": ("bare_loops", "run"),
    "deepspeed": ("bare_loops", "run_deepspeed"),
    "trl": ("trl_trainer", "run"),
}
"""Kind of a contender → module and function."""

WARM_UP_STEPS = 3


def main() -> None:
    told = json.loads(sys.argv[1])
    contender, workload = told["contender"], Workload(**told["workload"])
    module, function = LOOPS[contender["kind"]]
    with own_voice() as answers:
        loop = getattr(importlib.import_module(f"benchmarks.step_overhead.{module}"), function)
        try:
            loop(workload, contender["options"], lambda steps: Clock(steps, WARM_UP_STEPS, sys.stdin, answers))
        except TrialsOver:
            os._exit(0)  # process groups and trainers are not taken down: nothing of them is wanted any more
        except BaseException:
            traceback.print_exc()
            os._exit(1)


if __name__ == "__main__":
    main()
