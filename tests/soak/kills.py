"""Kill -9 at random places, inside saves too, and disks that fail at a random call: what is left must always go on.

    python -m tests.soak.kills --kills 200 --json tests/soak/kills.json

Trains a tiny Llama once undisturbed, then again and again with a blow in each life, until so many have fallen. After
each, every checkpoint that has its final name must be whole; at its end each run must have logged what the undisturbed
one did, to the last bit, which covers losses, norms, and which rows each step saw.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtrain.paths import RunPaths
from dtrain.train.checkpoint import step_of, what_is_wrong
from tests.e2e.cli import metrics
from tests.e2e.conftest import make_place_in
from tests.faults import lives

STEPS = 40
BEATS = 4 * STEPS
FILE_CALLS = 60
BLOWS_PER_RUN = 6
LAUNCH = (
    "launch", "tiny.yaml", "--profile", "cpu", "--set", f"max_steps={STEPS}", "--set", "num_epochs=9",
    "--set", "save_steps=3",
)  # fmt: skip
COMPARED = ("step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "trained_tokens", "tokens_seen")


@dataclass
class Tally:
    kills: int = 0
    runs: int = 0
    bit_equal_runs: int = 0
    unreadable_checkpoints: int = 0
    lives_without_a_checkpoint: int = 0
    blows: list[str] = field(default_factory=list)

    def check(self, paths: RunPaths) -> None:
        """Whatever has a checkpoint's name is one."""
        wrong = [what_is_wrong(folder) for folder in sorted(paths.checkpoints.glob("step-*"), key=step_of)]
        self.unreadable_checkpoints += sum(problem is not None for problem in wrong)
        self.lives_without_a_checkpoint += not wrong


def trajectory(paths: RunPaths) -> list[tuple[Any, ...]]:
    return [tuple(line.get(name) for name in COMPARED) for line in metrics(paths)]


def blows_for(draw: random.Random, world: int, count: int) -> list[lives.Blow]:
    return [lives.random_blow(draw, world, BEATS, FILE_CALLS) for _ in range(count)]


def finished_run(folder: Path, zero_stage: int) -> RunPaths:
    """A run that nobody disturbed, as the command line plans it and prepares its data."""
    place = make_place_in(folder)
    planned = place.dtrain(*LAUNCH, "--set", f"zero_stage={zero_stage}", "--dry-run", "--json")
    assert planned.code == 0, planned.err
    paths = place.run("out")
    paths.run.mkdir(parents=True)
    for name, text in planned.document["files"].items():
        (paths.run / Path(name).name).write_text(text)
    command = [sys.executable, "-m", "dtrain.data.prepare", str(paths.output)]
    subprocess.run(command, env=place.environment(), check=True, stdout=sys.stderr)
    assert lives.live(paths, 2, None) == [0, 0]
    return paths


def strike(finished: RunPaths, folder: Path, world: int, kills: int, seed: int, until: float) -> Tally:
    """Runs with blows until `kills` of them have fallen, or no run begins any more at `until` (monotonic)."""
    draw, tally = random.Random(seed), Tally()
    wanted = trajectory(finished)
    while tally.kills < kills and time.monotonic() < until:
        paths = lives.copy_of(finished, folder / f"run-{tally.runs}")
        blows = blows_for(draw, world, min(BLOWS_PER_RUN, kills - tally.kills))
        for blow, codes in lives.survive(paths, world, blows, tally.check):
            tally.kills += any(codes)
            tally.blows.append(f"{blow}: {codes}")
        tally.runs += 1
        tally.bit_equal_runs += trajectory(paths) == wanted
        print(f"{tally.kills} kills, {tally.runs} runs, {tally.bit_equal_runs} bit-equal", file=sys.stderr, flush=True)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=120.0, help="no run begins after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--zero-stage", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True)
    told = parser.parse_args()
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        lives.preload()
        finished = finished_run(Path(folder) / "undisturbed", told.zero_stage)
        tally = strike(finished, Path(folder), 2, told.kills, told.seed, time.monotonic() + 60 * told.minutes)
    document = {
        "schema_version": 1, "asked_kills": told.kills, "kills": tally.kills,
        "runs": tally.runs, "bit_equal_runs": tally.bit_equal_runs,
        "unreadable_checkpoints": tally.unreadable_checkpoints,
        "lives_that_left_no_checkpoint_yet": tally.lives_without_a_checkpoint, "seed": told.seed, "ranks": 2,
        "zero_stage": told.zero_stage, "steps": STEPS, "seconds": round(time.time() - started),
        "machine": platform.platform(), "ended": round(time.time()), "blows": tally.blows,
    }  # fmt: skip
    told.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if tally.bit_equal_runs == tally.runs and tally.unreadable_checkpoints == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
