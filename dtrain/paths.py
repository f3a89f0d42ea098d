"""The only place that knows the names of files in a run's folder and in dtrain's home."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def home() -> Path:
    """`$DTRAIN_HOME`, else the user's data folder: the registry of runs and the cache of tokenised data."""
    told = os.environ.get("DTRAIN_HOME")
    if told:
        return Path(told)
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "dtrain"


def own_prices() -> Path:
    """What `dtrain prices refresh` was told: rows of the price table, preferred to the shipped ones."""
    return home() / "prices.json"


def measured() -> Path:
    """What this machine's runs measured beside their plans: a JSON object a line."""
    return home() / "measured.jsonl"


@dataclass(frozen=True)
class NodePaths:
    """What each supervisor of a run on several nodes has of its own; the run's exit.json is written when all ended."""

    run: Path
    number: int

    @property
    def ending(self) -> Path:
        """How this node's share of the run ended: an exit.json of its own."""
        return self.run / "nodes" / f"{self.number}.json"

    @property
    def log(self) -> Path:
        """What this node's supervisor and torchrun said."""
        return self.run / "logs" / (f"launch-{self.number}.log" if self.number else "launch.log")


@dataclass(frozen=True)
class RunPaths:
    """Files of one run. `output` becomes a Hugging Face model folder; `output/dtrain` is the run itself."""

    output: Path

    @property
    def run(self) -> Path:
        return self.output / "dtrain"

    @property
    def config(self) -> Path:
        """The resolved config, every value explicit; what a worker reads."""
        return self.run / "config.yaml"

    @property
    def plan(self) -> Path:
        return self.run / "plan.json"

    @property
    def own_profile(self) -> Path:
        """`profile.yaml`: a copy of the person's own profile file, where `--profile` named one."""
        return self.run / "profile.yaml"

    @property
    def state(self) -> Path:
        """Where the run stands now: written by rank 0, read by every client."""
        return self.run / "state.json"

    @property
    def exit(self) -> Path:
        """`{"code","reason","step","ended"}`, written last."""
        return self.run / "exit.json"

    @property
    def metrics(self) -> Path:
        return self.run / "metrics.jsonl"

    @property
    def loss_plot(self) -> Path:
        return self.run / "loss.png"

    @property
    def logs(self) -> Path:
        return self.run / "logs"

    def rank_log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.log"

    def rank_error(self, rank: int) -> Path:
        """A rank's own last words as JSON: an error object of the contract plus `traceback`."""
        return self.logs / f"rank-{rank}.error.json"

    def heartbeat(self, rank: int) -> Path:
        """A rank's sign of life, for the supervisor of its machine."""
        return self.run / "heartbeats" / f"rank-{rank}"

    @property
    def launch_log(self) -> Path:
        """What the supervisor and torchrun said."""
        return self.logs / "launch.log"

    @property
    def prepare_error(self) -> Path:
        """What stopped `dtrain.data.prepare`, as JSON: an error object of the contract plus `traceback`."""
        return self.logs / "prepare.error.json"

    @property
    def about(self) -> Path:
        """`run.json`: the run's id, name, profile and launcher, so that a folder explains itself anywhere."""
        return self.run / "run.json"

    @property
    def launch(self) -> Path:
        """`launch.json`: what a supervisor starts and how; written by the launcher."""
        return self.run / "launch.json"

    @property
    def supervisor(self) -> Path:
        """`supervisor.json`: which process on which machine watches over the ranks."""
        return self.run / "supervisor.json"

    @property
    def supervisor_lock(self) -> Path:
        return self.run / "supervisor.lock"

    def node(self, number: int) -> NodePaths:
        return NodePaths(self.run, number)

    @property
    def job_script(self) -> Path:
        """What a batch system was given to run."""
        return self.run / "train.sbatch"

    @property
    def job(self) -> Path:
        """`job.json`: the id that the batch system gave the run's job; written after it took it."""
        return self.run / "job.json"

    @property
    def job_log(self) -> Path:
        """What the batch script and the batch system itself said."""
        return self.logs / "job.log"

    @property
    def remote(self) -> Path:
        """`remote.json`: on which machines a run lies that was started over SSH; written before anything is there."""
        return self.run / "remote.json"

    @property
    def mirror(self) -> Path:
        """`mirror.json`: how far this folder follows the run's own one elsewhere, and when it was last seen."""
        return self.run / "mirror.json"

    @property
    def mirror_lock(self) -> Path:
        return self.run / "mirror.lock"

    @property
    def rental(self) -> Path:
        """`rental.json`: how a rented run stands, in stages with time and money; written by its keeper."""
        return self.run / "rental.json"

    @property
    def rented(self) -> Path:
        """What the keeper of a rented run works with."""
        return self.run / "rented"

    @property
    def keeper_lock(self) -> Path:
        """Held by the process that keeps a rented run."""
        return self.rented / "keeper.lock"

    @property
    def keeper_log(self) -> Path:
        return self.logs / "keeper.log"

    @property
    def past(self) -> Path:
        """`past/N`: exit.json, state.json and error files of the run's N-th life, put aside by a resume."""
        return self.run / "past"

    @property
    def data(self) -> Path:
        """`data.json`: which cache entry holds the tokenised rows, the counts, what was dropped and why."""
        return self.run / "data.json"

    @property
    def passed(self) -> Path:
        """`passed.json`: steps that a bad loss made the run go past, with their rows."""
        return self.run / "passed.json"

    @property
    def probe(self) -> Path:
        """`probe.json`: the longest batch, measured before the first step, beside the plan."""
        return self.run / "probe.json"

    @property
    def samples(self) -> Path:
        """`samples.json`: what the trained model wrote for `sample_prompts`."""
        return self.run / "samples.json"

    @property
    def report(self) -> Path:
        """`report.json`: planned beside measured, the end of the run in numbers."""
        return self.run / "report.json"

    @property
    def checkpoints(self) -> Path:
        return self.run / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step}"

    @classmethod
    def of(cls, folder: Path) -> RunPaths:
        """From the output folder or from the `dtrain` folder inside it."""
        folder = Path(folder)
        return cls(folder.parent if folder.name == "dtrain" and (folder / "plan.json").exists() else folder)
