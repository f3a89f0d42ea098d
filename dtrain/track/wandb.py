"""Weights & Biases, on request: rank 0 only, one W&B run over all resumes, and never a reason for a run to fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from dtrain.config.schema import Config
from dtrain.errors import PartMissing

Say = Callable[[str], None]


class Tracker:
    """Nothing at all, until `start` returns one that has a W&B run."""

    def __init__(self, run: Any = None, say: Say = print) -> None:
        self._run = run
        self._say = say

    @property
    def run_id(self) -> str | None:
        return None if self._run is None else str(self._run.id)

    def log(self, line: Mapping[str, Any]) -> None:
        self._safely(lambda: self._run.log(dict(line)))

    def summarize(self, figures: Mapping[str, Any]) -> None:
        self._safely(lambda: self._run.summary.update(dict(figures)))

    def finish(self, exit_code: int) -> None:
        self._safely(lambda: self._run.finish(exit_code=exit_code))

    def _safely(self, call: Callable[[], Any]) -> None:
        if self._run is None:
            return
        try:
            call()
        except Exception as error:  # any failure of a tracker is worth a line, never the run
            self._say(f"wandb: {_first_line(error)}")


def wanted(config: Config) -> bool:
    """A project says yes (Axolotl's rule) unless `use_wandb: false` or `wandb_mode: disabled` says no."""
    if config.use_wandb is False or config.wandb_mode == "disabled":
        return False
    return bool(config.use_wandb or config.wandb_project)


PATIENCE_SECONDS = {"init_timeout": 20.0, "finish_timeout": 30.0}
"""How long the start and the end of a run wait for the server; wandb's own are 90 s and for ever. All ranks wait with
rank 0, and a stopped run has two minutes in all. `WANDB_INIT_TIMEOUT` and the like in the environment win."""


def start(config: Config, name: str, run_id: str, folder: Path, plan: Mapping[str, Any], say: Say) -> Tracker:
    """Begin or continue the W&B run `run_id`. An unreachable server is said, and the run recorded for `wandb sync`."""
    if not wanted(config):
        return Tracker()
    try:
        import wandb
    except ImportError:
        raise PartMissing.of("wandb", "wandb", "the key wandb_project") from None

    def begin(mode: Literal["online", "offline", "disabled"] | None) -> Any:
        run = wandb.init(
            project=config.wandb_project or "dtrain",
            entity=config.wandb_entity,
            name=config.wandb_name or name,
            id=config.wandb_run_id or run_id,
            resume="allow",
            mode=mode,
            dir=str(folder),
            config={"config": config.model_dump(mode="json"), "plan": dict(plan)},
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, **_patience(wandb)),
        )
        run.define_metric("*", step_metric="step")  # a resumed run logs steps again, which W&B's own counter refuses
        return run

    try:
        return Tracker(begin(config.wandb_mode), say)
    except Exception as error:  # no network, no key, a server that answers nonsense: the run goes on
        say(f"wandb: not online ({_first_line(error)}); `wandb sync {folder / 'wandb'}/offline-*` uploads it later")
    try:
        wandb.teardown()  # its service still holds the run's id
        return Tracker(begin("offline"), say)
    except Exception as error:
        say(f"wandb: not started ({_first_line(error)}); metrics.jsonl has everything")
        return Tracker()


def _patience(wandb: Any) -> dict[str, float]:
    """What this version of wandb knows of it, and the environment does not say."""
    known = wandb.Settings.model_fields
    return {
        name: seconds
        for name, seconds in PATIENCE_SECONDS.items()
        if name in known and f"WANDB_{name.upper()}" not in os.environ
    }


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip(':')}" if lines else type(error).__name__
