"""A run's config, machine and model, read again from its folder: to plan it anew, with the same global batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dtrain.config.launchable import launch_refusals
from dtrain.config.load import load
from dtrain.config.origins import Loaded
from dtrain.errors import BadInput, BadInputs
from dtrain.files import read_json
from dtrain.hardware.profiles import Profile, resolve_profile
from dtrain.launch.ending import last_checkpoint
from dtrain.models.hub import load_facts
from dtrain.paths import RunPaths
from dtrain.planner.measured import own_bias
from dtrain.planner.nearest import require_fit
from dtrain.planner.plan import Plan, make_plan, versions
from dtrain.planner.replan import Layout, same_global_batch

BATCH_KEYS = ("global_batch_size", "batch_size", "gradient_accumulation_steps")
OTHER_ROWS = "each step after the checkpoint would see other rows"
FIXED = {
    **dict.fromkeys(("sequence_len", "sample_packing", "shuffle", "seed"), OTHER_ROWS),
    "tensor_parallel_size": "the checkpoint holds parts of layers that are cut so many ways",
}
"""What cannot change once there is a checkpoint, beside the global batch, and why."""


def profile_of(paths: RunPaths, plan: Mapping[str, Any]) -> Profile:
    """The machine a run was planned for: the person's own file, which the run keeps, or a name."""
    return resolve_profile(str(paths.own_profile) if paths.own_profile.is_file() else plan["profile"]["name"])


def layout_of(paths: RunPaths, sets: Sequence[str] = (), profile: str | None = None) -> Layout:
    """BadInput where the folder, the flags or the model cannot be read."""
    loaded = load(paths.config, sets)
    refusals = launch_refusals(loaded)
    if refusals:
        raise BadInputs(refusals)
    try:
        plan: dict[str, Any] = read_json(paths.plan)
    except (OSError, ValueError) as error:
        raise BadInput("the run's plan cannot be read", file=str(paths.plan), value=str(error)) from None
    machine = resolve_profile(profile) if profile is not None else profile_of(paths, plan)
    facts = load_facts(
        loaded.config.base_model, revision=loaded.config.revision_of_model, config_dir=paths.config.parent
    )
    return Layout(loaded, machine, facts, plan)


def planned_again(paths: RunPaths, sets: Sequence[str], profile: str | None) -> tuple[Loaded, Plan]:
    """The run with `sets` over its config, on another machine where `profile` says so. BadInput for a change of the
    rows a step sees once there is a checkpoint; DoesNotFit where it does not."""
    layout = layout_of(paths, sets, profile)
    loaded = layout.loaded
    if not any(loaded.origin(key).kind == "flag" for key in BATCH_KEYS):
        loaded = replace(loaded, config=loaded.config.model_copy(update=_batch(layout)))
    plan = make_plan(loaded, layout.profile, layout.facts, bias=own_bias(layout.profile, versions()))
    _refuse_what_is_fixed(paths, layout, loaded, plan)
    require_fit(plan, loaded, layout.facts)
    return loaded, plan


def _batch(layout: Layout) -> dict[str, Any]:
    """Split as the flags say, else as the planner likes: another machine has other ranks."""
    said = layout.loaded.origin("micro_batch_size").kind == "flag"
    return same_global_batch(layout.choice) | ({} if said else {"micro_batch_size": "auto"})


def _refuse_what_is_fixed(paths: RunPaths, layout: Layout, loaded: Loaded, plan: Plan) -> None:
    if last_checkpoint(paths) is None:
        return
    before = load(paths.config).config
    told = [(key, getattr(before, key), getattr(loaded.config, key)) for key in FIXED]
    told.append(("global_batch_size", layout.choice.global_batch_size, plan.choice.global_batch_size))
    for key, was, now in told:
        if was != now:
            raise BadInput(
                FIXED.get(key, OTHER_ROWS), key=key, value=now, allowed=was,
                fix="leave it as it was, or launch a new run",
            )  # fmt: skip
