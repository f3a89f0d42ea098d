"""Everything a launch is, before anything is written: what `--dry-run` shows and what `launch` then does."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.config import deepspeed_file
from dtrain.config.launchable import launch_refusals
from dtrain.config.load import load
from dtrain.config.origins import Loaded
from dtrain.config.schema import Config
from dtrain.errors import BadInputs, LauncherRefused
from dtrain.hardware.profiles import Profile, looks_like_path, resolve_profile
from dtrain.launch import load as launchers
from dtrain.launch.api import AsksForFiles, Job, Launcher, Rendered
from dtrain.launch.create import job_of, new_id, output_folder, refuse_taken, run_files, run_name, settled
from dtrain.launch.inputs import missing_data, missing_weights
from dtrain.launch.registry import Entry
from dtrain.models.facts import ModelFacts
from dtrain.models.hub import load_facts
from dtrain.planner.deepspeed_values import auto_values
from dtrain.planner.measured import NO_BIAS, own_bias
from dtrain.planner.nearest import Way, ways_out
from dtrain.planner.nvme import missing_path, refuse_bad_drive
from dtrain.planner.plan import Plan, make_plan, versions


@dataclass(frozen=True)
class Planned:
    """A config that may be launched, on a machine."""

    loaded: Loaded
    profile: Profile
    facts: ModelFacts
    plan: Plan
    own_profile: str | None = None
    """The text of the person's own profile file, where `--profile` named one."""

    def ways_out(self) -> list[Way]:
        """The nearest changes with which it would fit; empty when it fits."""
        return [] if self.plan.accepted else ways_out(self.plan, self.loaded, self.facts)


def planned(
    file: Path, sets: Sequence[str], profile_name: str, on: str = "local", *, with_bias: bool = True
) -> Planned:
    """Read, refuse what cannot run, plan. BadInput(s) for every mistake there is.

    `with_bias`: as this machine's earlier runs measured their plans; the plan's reasons say so.
    """
    elsewhere = isinstance(launchers.load(on), AsksForFiles)
    loaded = load(file, sets)
    refusals = launch_refusals(loaded) + missing_path(loaded) + missing_weights(loaded)
    refusals += missing_data(loaded, elsewhere)
    if refusals:
        raise BadInputs(refusals)
    profile = resolve_profile(profile_name)
    refuse_planned_only(profile)
    facts = load_facts(loaded.config.base_model, revision=loaded.config.revision_of_model, config_dir=file.parent)
    bias = own_bias(profile, versions()) if with_bias else NO_BIAS
    plan = make_plan(loaded, profile, facts, bias=bias, provider=on)
    _refuse_another_deepspeed_file(loaded, plan, facts)
    if on == "local":
        refuse_bad_drive(loaded, plan.candidate.setup)
    own = Path(profile_name).expanduser().read_text() if looks_like_path(profile_name.strip()) else None
    return Planned(loaded, profile, facts, plan, own)


def _refuse_another_deepspeed_file(loaded: Loaded, plan: Plan, facts: ModelFacts) -> None:
    """BadInputs for values of `deepspeed:` that are not what the plan decided; a rank would refuse them later."""
    file = deepspeed_file.of(loaded.config)
    if file is None:
        return
    wrong = deepspeed_file.disagreements(file.document, auto_values(loaded.config, plan.choice, facts.hidden_size))
    origin = loaded.origin("deepspeed")
    for error in wrong:
        error.file, error.line = origin.file, origin.line
    if wrong:
        raise BadInputs(wrong)


def refuse_planned_only(profile: Profile) -> None:
    """Cards that dtrain can plan for and not train on."""
    if profile.gpu.support == "planned":
        raise LauncherRefused(
            f"dtrain plans for {profile.gpu.title} and cannot train on it yet", key="--profile", value=profile.name,
            allowed="NVIDIA GPUs and cpu", fix="dtrain profiles lists them",
        )  # fmt: skip


@dataclass(frozen=True)
class Draft:
    """A run that does not exist yet: its folder's files and what its launcher would do."""

    launcher: Launcher
    entry: Entry
    config: Config
    job: Job
    rendered: Rendered
    files: Mapping[str, str]
    """Name in the run's `dtrain` folder → content."""

    @property
    def folder(self) -> Path:
        return self.job.folder

    def as_json(self) -> dict[str, Any]:
        run = self.folder / "dtrain"
        return {
            "run": {"id": self.entry.id, "name": self.entry.name, "folder": str(self.folder)},
            "launcher": self.entry.launcher,
            "files": {**{str(run / name): text for name, text in self.files.items()}, **self.rendered.files},
            "commands": [list(command) for command in self.rendered.commands],
            "requests": [dict(request) for request in self.rendered.requests],
            "usd_per_hour": self.rendered.usd_per_hour,
            "notes": list(self.rendered.notes),
        }


def draft(made: Planned, on: str, name: str | None) -> Draft:
    """The run as it would be created now, here. Writes nothing; BadInput if its folder is taken."""
    launcher = launchers.load(on)
    config, file = made.loaded.config, made.loaded.file
    run_id = new_id()
    called = run_name(config, file, name)
    output = output_folder(config, called, run_id)
    refuse_taken(output)
    entry = Entry(
        id=run_id,
        name=called,
        folder=str(output),
        launcher=on,
        profile=made.profile.name,
        created=round(time.time(), 3),
        nodes=made.profile.nodes,
        ranks_per_node=made.profile.gpus_per_node,
        device="cpu" if made.profile.is_cpu else "cuda",
        working_directory=os.getcwd(),
        options=config.launchers[on].model_dump() if on in config.launchers else {},
    )
    plan = made.plan.as_json()
    kept = settled(config, file, called, output)
    job = job_of(entry, plan, kept.model_dump(mode="json"))
    files = run_files(kept, plan, entry) | ({"profile.yaml": made.own_profile} if made.own_profile else {})
    return Draft(launcher, entry, kept, job, launcher.render(job), files)
