"""The leak test of the client: `dtrain launch` is killed before and after each thing that it does, then one gc.

`python -m tests.cloud.client_leaks launch tiny.yaml …` is the `dtrain` command with stand-ins behind it, ended by
SIGKILL where KILLED_AT in its environment says.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dtrain.cli.main import main
from dtrain.cloud.launcher import CloudLauncher
from dtrain.cloud.progress import has_keeper
from dtrain.files import read_json
from dtrain.launch.api import Job
from dtrain.launch.ending import Ending
from dtrain.paths import RunPaths
from tests.cloud.datacenter import Datacenter
from tests.cloud.leaks import REACH_SECONDS, Case, Outcome, doubled_of, gc_once, ledger_is_closed, lost
from tests.cloud.worlds import World
from tests.launch.cli import use_stand_ins
from tests.ssh.typed import MODEL
from tests.waiting import wait_until

VARIABLE = "KILLED_AT"
POINTS = {
    "plan": ("dtrain.launch.draft", "planned", 1),
    "offers": ("dtrain.cloud.launcher", "offers", 1),
    "check": ("dtrain.launch.begin", "refuse_unready", 1),
    "confirm": ("dtrain.cli.launch", "_confirm", 1),
    "run folder": ("dtrain.launch.create", "create", 1),
    "intent in the registry": ("dtrain.launch.registry", "write", 1),
    "order book": ("dtrain.cloud.order_book", "OrderBook.write", 1),
    "first line of the ledger": ("dtrain.cloud.ledger", "Ledger.begun", 1),
    "start of the keeper": ("dtrain.cloud.keeper", "start", 1),
    "wait for the order": ("dtrain.cloud.launcher", "CloudLauncher._wait_until_ordered", 1),
    "handle in the registry": ("dtrain.launch.registry", "write", 2),
    "follow": ("dtrain.show.watch", "watch", 1),
}
"""What a client does of a launch, in this order → where it does it, and which call it is."""
WHEN = ("before", "after")


def client_cases() -> list[Case]:
    return [Case(at, when, who="client") for at in POINTS for when in WHEN]


@dataclass(frozen=True)
class Person:
    """Who types the command: a folder with a config, a model's config.json and some rows."""

    folder: Path
    launcher: CloudLauncher

    @classmethod
    def with_files(cls, folder: Path, launcher: CloudLauncher, options: Any) -> Person:
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "config.json").write_text(json.dumps(MODEL))
        rows = [{"instruction": f"count {number}", "output": f"{number} " * 8} for number in range(40)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {
            "base_model": "./model", "reinit_weights": True, "train_tokenizer": {"vocab_size": 300}, "max_steps": 8,
            "datasets": [{"path": "rows.jsonl", "type": "alpaca"}], "sequence_len": 128, "micro_batch_size": 1,
            "bf16": False, "launchers": {launcher.name: dict(options)},
        }  # fmt: skip
        (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
        return cls(folder, launcher)

    def launches(self, case: Case) -> bool:
        """To the client's end by SIGKILL; whether that was where it should be."""
        mark = self.folder / "reached"
        told = {"at": case.at, "when": case.when, "mark": str(mark)}
        words = ("launch", "tiny.yaml", "--profile", "cpu", "--on", self.launcher.name)
        done = subprocess.run(
            [sys.executable, "-m", "tests.cloud.client_leaks", *words], cwd=self.folder, input=b"y\n",
            env={**os.environ, VARIABLE: json.dumps(told), "PYTHONPATH": os.getcwd()}, timeout=REACH_SECONDS,
            capture_output=True,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, (str(case), done.stdout[-2000:], done.stderr[-2000:])
        return mark.exists()

    def run(self) -> Job | None:
        """The run that the client left behind, if any."""
        for file in self.folder.glob("runs/*/dtrain/run.json"):
            told = read_json(file)
            return Job(told["id"], told["name"], file.parents[1], 1, 2, "cpu")
        return None


def try_client_case(case: Case, world: World, datacenter: Datacenter, person: Person) -> Outcome:
    """A keeper that the client left drives the run to its end, as it would without a client; then one gc."""
    started, before = time.monotonic(), len(world.created)
    reached = person.launches(case)
    job = person.run()
    if job is not None and (RunPaths(job.folder).rented / "keeper.started").exists():
        wait_until(lambda: ledger_is_closed(job.run_id) and not has_keeper(RunPaths(job.folder)), REACH_SECONDS)
    gc_once()
    ending = Ending.read(RunPaths(job.folder)) if job is not None else None
    return Outcome(
        case, reached, world.machines(),
        lost(job, RunPaths(job.folder), datacenter) if job is not None else "",
        doubled_of(job, world.created[before:], datacenter) if job is not None else "",
        round(time.monotonic() - started, 1), ending.code if ending else None,
    )  # fmt: skip


def sweep_client(
    world: World, datacenter: Datacenter, launcher: CloudLauncher, options: Any, folder: Path
) -> list[Outcome]:
    """Every case, each by another person."""
    found = []
    for number, case in enumerate(client_cases()):
        person = Person.with_files(folder / f"person{number}", launcher, options)
        found.append(try_client_case(case, world, datacenter, person))
    return found


# --- the command ----------------------------------------------------------------------------------------------------


def arm(at: str, when: str, mark: Path) -> None:
    """`mark` is there once the point was reached."""
    module, name, number = POINTS[at]
    *owners, last = name.split(".")
    owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
    real, calls = getattr(owner, last), 0

    @functools.wraps(real)
    def deadly(*words: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            die(mark)
        answer = real(*words, **more)
        if calls == number:
            die(mark)
        return answer

    setattr(owner, last, deadly)


def die(mark: Path) -> None:
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    use_stand_ins()
    wanted = json.loads(os.environ.pop(VARIABLE))
    arm(wanted["at"], wanted["when"], Path(wanted["mark"]))
    main()
