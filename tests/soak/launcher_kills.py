"""Kill -9 of the supervisor at random moments, start-up included: its ranks go with it, and `dtrain resume` goes on.

python -m tests.soak.launcher_kills --kills 12 --json tests/soak/launcher_kills.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from dtrain.paths import RunPaths
from tests.e2e.cli import Place
from tests.e2e.conftest import make_place_in
from tests.soak.kills import trajectory
from tests.waiting import wait_until

STEPS = 60
LAUNCH = (
    "launch", "tiny.yaml", "--profile", "cpu", "--set", f"max_steps={STEPS}", "--set", "num_epochs=9",
    "--set", "save_steps=3", "--set", "zero_stage=2",
)  # fmt: skip
LONGEST_LIFE_SECONDS = 20.0
GONE_SECONDS = 20.0


def supervisor_of(run: RunPaths) -> int:
    return int(json.loads(run.supervisor.read_text())["pid"])


def struck(place: Place, run: RunPaths, after_seconds: float) -> bool:
    """Whether the supervisor still lived when the blow fell. Nothing of the run may be left then."""
    deadline = time.monotonic() + after_seconds
    while time.monotonic() < deadline and not run.exit.exists():
        time.sleep(0.02)
    alive = not run.exit.exists()
    with suppress(ProcessLookupError):
        os.kill(supervisor_of(run), signal.SIGKILL) if alive else None
    wait_until(lambda: place.processes() == [], GONE_SECONDS)
    return alive


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    told = parser.parse_args()
    draw, started, kills, runs, equal, states = random.Random(told.seed), time.time(), 0, 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        quiet = make_place_in(Path(folder) / "undisturbed")
        assert quiet.dtrain(*LAUNCH, timeout=300).code == 0
        wanted = trajectory(quiet.run("out"))
        while kills < told.kills:
            place = make_place_in(Path(folder) / f"run-{runs}")
            run, begun = place.run("out"), place.dtrain(*LAUNCH, "--detach")
            assert begun.code == 0, begun.err
            while not run.exit.exists() and struck(place, run, draw.uniform(0, LONGEST_LIFE_SECONDS)):
                kills += 1
                states.append(place.dtrain("status", "out", "--json").document["state"])
                again = place.dtrain("resume", "out", "--force", "--detach")
                assert again.code == 0, again.err
                if kills >= told.kills:
                    wait_until(run.exit.exists, 300)
            runs += 1
            equal += trajectory(run) == wanted
            print(f"{kills} kills, {runs} runs, {equal} bit-equal", flush=True)
    document = {
        "schema_version": 1, "kills": kills, "runs": runs, "bit_equal_runs": equal, "seed": told.seed,
        "seen_as": {state: states.count(state) for state in sorted(set(states))}, "left_processes": 0,
        "seconds": round(time.time() - started), "ended": round(time.time()),
    }  # fmt: skip
    told.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if equal == runs else 1


if __name__ == "__main__":
    raise SystemExit(main())
