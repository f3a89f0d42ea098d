"""`python -m benchmarks.step_overhead`: the training step of dtrain beside bare loops and TRL, on this machine.

Prints a table, and writes JSON with date, machine and versions. What it measures, and how to give it TRL, stands in
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.step_overhead import curves, first_step, summary
from benchmarks.step_overhead.trials import ROOT, Contender, interleaved
from benchmarks.step_overhead.workload import Workload

OWN_ENVIRONMENT = ROOT / ".bench-venv" / "bin" / "python"

ONE_RANK = (
    Contender("dtrain unpacked", "dtrain", options={"packed": False, "zero_stage": 0}),
    Contender("dtrain packed", "dtrain", options={"packed": True, "zero_stage": 0}),
    Contender("dtrain packed, ZeRO 2", "dtrain", options={"packed": True, "zero_stage": 2}),
    *(Contender(f"bare {batches}", "bare", options={"batches": batches}) for batches in ("packed", "padded", "sorted")),
    *(
        Contender(f"trl {mode}", "trl", options={"mode": mode})
        for mode in ("default", "padded", "packing", "padding_free")
    ),
)

SCALED = (
    ("dtrain zero0", "dtrain", {"packed": True, "zero_stage": 0}),
    ("bare ddp", "bare", {"batches": "packed"}),
    ("dtrain zero2", "dtrain", {"packed": True, "zero_stage": 2}),
    ("bare deepspeed", "deepspeed", {"batches": "packed", "zero_stage": 2}),
)

TWO_RANKS = tuple(
    Contender(f"{name}, {world} rank{'s' if world > 1 else ''}", kind, world=world, threads=1, options=options)
    for name, kind, options in SCALED
    for world in (1, 2)
)


def main() -> None:
    asked = arguments()
    workload = Workload(spread=asked.spread)
    document: dict[str, Any] = {
        "schema_version": 1, "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(),
        "versions": versions(asked.trl_python), "load_before": os.getloadavg(), "workload": asdict(workload),
        "real_tokens_per_epoch": workload.real_tokens, "trained_tokens_per_epoch": workload.trained_tokens,
    }  # fmt: skip
    if not asked.trl_python.exists():
        warn(f"{asked.trl_python} is not there: NOTHING OF TRL IS MEASURED (benchmarks/README.md says how to make it)")
    goals: list[summary.Goal] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in asked.parts:
            goals += PARTS[part](asked, workload, Path(folder), document)
    document |= {"load_after": os.getloadavg(), "goals": [asdict(goal) | {"reached": goal.reached} for goal in goals]}
    print("\n".join(["", *summary.goal_lines(goals)]))
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"written: {asked.json}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_overhead", description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7, help="trials of each contender (default: %(default)s)")
    parser.add_argument("--spread", type=float, default=Workload.spread, help="of the logarithm of a row's length")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--trl-python", type=Path, default=OWN_ENVIRONMENT, help="an environment with TRL")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "step_overhead" / "results" / "latest.json")
    return parser.parse_args()


def throughput(asked: argparse.Namespace, workload: Workload, folder: Path, into: dict[str, Any]) -> list[summary.Goal]:
    contenders = [one for one in ONE_RANK if one.kind != "trl" or asked.trl_python.exists()]
    trials = trials_of(contenders, asked, workload, folder, into, "throughput", "bare packed")
    return summary.throughput_goals(trials)


def scaling(asked: argparse.Namespace, workload: Workload, folder: Path, into: dict[str, Any]) -> list[summary.Goal]:
    trials = trials_of(TWO_RANKS, asked, workload, folder, into, "scaling", "bare ddp, 1 rank")
    return summary.scaling_goals(trials)


def start(asked: argparse.Namespace, workload: Workload, folder: Path, into: dict[str, Any]) -> list[summary.Goal]:
    into["first_step_seconds"] = first_step.measured(max(3, asked.repetitions // 2))
    for name, seconds in into["first_step_seconds"].items():
        print(f"first step of {name:16} {statistics.median(seconds):6.2f} s")
    return summary.first_step_goals(into["first_step_seconds"])


def loss_curves(
    asked: argparse.Namespace, workload: Workload, folder: Path, into: dict[str, Any]
) -> list[summary.Goal]:
    if not asked.trl_python.exists():
        return [summary.curve_goal(None)]
    compared = curves.compare(folder, asked.trl_python)
    into["loss_curves"] = [one.as_json() for one in compared]
    into["loss_curves_agreed"] = curves.AGREED
    for one in compared:
        print(
            f"{one.curve.name:26} largest difference from TRL over {len(one.dtrain)} steps "
            f"{one.largest_difference:.1e}, rows that differ {one.differing_rows}, "
            f"loss {one.dtrain[0]:.3f} to {one.dtrain[-1]:.3f}"
        )
    return [summary.curve_goal(max(one.largest_difference for one in compared))]


PARTS = {"throughput": throughput, "scaling": scaling, "first-step": start, "curves": loss_curves}


def trials_of(
    contenders: Any, asked: argparse.Namespace, workload: Workload, folder: Path, into: dict[str, Any], part: str,
    reference: str,
) -> summary.Trials:  # fmt: skip
    ours = Path(sys.executable)
    pythons = {"dtrain": ours, "bare": ours, "deepspeed": ours, "trl": asked.trl_python}
    trials = interleaved(contenders, pythons, asdict(workload), asked.repetitions, folder)
    into[part] = [
        summary.figures(one, trials[one.name], workload.real_tokens, workload.trained_tokens) for one in contenders
    ]
    print("\n".join(["", *summary.table(into[part], trials, reference)]), flush=True)
    return trials


def machine() -> dict[str, Any]:
    models = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(), "cores": os.cpu_count(), "system": platform.platform(),
        "python": platform.python_version(),
    }  # fmt: skip


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def versions(trl_python: Path) -> dict[str, str]:
    found = {name: metadata.version(name) for name in ("torch", "deepspeed", "transformers")}
    if trl_python.exists():
        asked = "from importlib.metadata import version as v; print(v('trl'), v('accelerate'))"
        told = subprocess.run([str(trl_python), "-c", asked], capture_output=True, text=True, check=True).stdout.split()
        found |= dict(zip(("trl", "accelerate"), told, strict=True))
    return found


def warn(words: str) -> None:
    print(f"\n*** {words} ***\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
