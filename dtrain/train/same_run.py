"""Whether a checkpoint belongs to the run as it is now: a step's number must mean the same rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dtrain.config.schema import Config
from dtrain.errors import BadInput
from dtrain.planner.choice import Choice
from dtrain.planner.plan import versions
from dtrain.train.checkpoint import Checkpoint


def facts(config: Config, choice: Choice) -> dict[str, Any]:
    """What decides, beside the rows themselves, which of them each step trains on."""
    return {
        "global_batch_size": choice.global_batch_size, "sequence_len": choice.sequence_len,
        "sample_packing": config.sample_packing, "shuffle": config.shuffle, "seed": config.seed,
    }  # fmt: skip


def refuse_other(config: Config, choice: Choice, found: Checkpoint, say: Callable[[str], None]) -> None:
    """BadInput when one of the facts changed since the checkpoint. Other versions of libraries are only told."""
    now = facts(config, choice)
    changed = [name for name, value in found.schedule.items() if name in now and now[name] != value]
    if changed:
        raise BadInput(
            "changed since the checkpoint was written: the run would see other rows", key=changed[0],
            file=str(found.folder), value=now[changed[0]], allowed=found.schedule[changed[0]],
            fix="put it back in the run's config.yaml, or launch a new run",
        )  # fmt: skip
    for name, version in versions().items():
        if found.versions.get(name, version) != version:
            say(f"{name} {version}: the checkpoint was written by {found.versions[name]}")
