"""The batch script: a template, and the values that follow from the job, the plan and the options."""

from __future__ import annotations

import math
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from dtrain import assets
from dtrain.errors import BadInput
from dtrain.launch import seeds
from dtrain.launch.api import Job, Rendered
from dtrain.launch.spec import spec_for, with_python
from dtrain.paths import RunPaths

from .slurm_options import SlurmOptions, seconds_of, slurm_time

TEMPLATE = "slurm/train.sbatch.j2"
SIGNAL_MARGIN_SECONDS = 60
"""Beside the time of a checkpoint: SLURM's warning came up to a minute early or late (launch_facts.md, 0.3)."""
TIME_FACTOR = 1.5
"""The time limit over the planned hours: the plan may be wrong by tens of percent, and a limit is not billed."""
TIME_MARGIN_SECONDS = 600
"""For the data's preparation, which the plan does not count, and a slow shared file system."""
CORES_PER_GPU = 4
"""The rank itself, the library's threads for copies and collectives, one to spare."""
MEMORY_FACTOR = 1.2
"""Over the planned host memory."""


def job_name(run_id: str) -> str:
    """By which every job of a run is found; SLURM starts no second one beside it (--dependency=singleton)."""
    return f"dtrain-{run_id}"


def signal_margin_seconds(job: Job, options: SlurmOptions) -> int:
    if options.signal_margin_seconds is not None:
        return options.signal_margin_seconds
    return min(65_535, math.ceil(float(job.plan.get("save_seconds") or 0)) + SIGNAL_MARGIN_SECONDS)


def time_limit(job: Job, options: SlurmOptions) -> str | None:
    """What was given, else the planned hours and a margin; None without either. BadInput for one that saves nothing."""
    margin = signal_margin_seconds(job, options)
    if options.time is None:
        hours = job.plan.get("hours")
        return None if hours is None else slurm_time(hours * 3600 * TIME_FACTOR + TIME_MARGIN_SECONDS + margin)
    given, least = seconds_of(options.time), margin + _seconds_to_one_checkpoint(job)
    if given is not None and given <= least:
        raise BadInput(
            f"the time limit is shorter than one checkpoint: a life of this run needs {math.ceil(least)} s to start, "
            f"make a step and save, of which {margin} s are the margin before the limit",
            key="launchers.slurm.time", value=options.time, allowed=f"more than {slurm_time(least)}",
            fix=f"--set launchers.slurm.time={slurm_time(least + TIME_MARGIN_SECONDS)}, or leave it out",
        )  # fmt: skip
    return options.time


def _seconds_to_one_checkpoint(job: Job) -> float:
    """Start, one step, save."""
    step = (job.plan.get("throughput") or {}).get("step_seconds")
    return sum(float(part or 0) for part in (job.plan.get("start_seconds"), step, job.plan.get("save_seconds")))


def resources(job: Job, options: SlurmOptions) -> list[str]:
    """Options of sbatch for what the job needs of each node, and who asks for it."""
    ranks = job.ranks_per_node
    cores = options.cpus_per_task or (ranks * CORES_PER_GPU if job.device == "cuda" else ranks)
    told = {"cpus-per-task": cores, "mem": options.mem or _memory(job)}
    if options.gres is not None:
        told["gres"] = options.gres
    elif job.device == "cuda":
        told["gpus-per-node"] = ranks
    for key in ("partition", "account", "qos", "constraint", "reservation", "nodelist", "exclude"):
        told[key] = getattr(options, key)
    return [f"--{key}={value}" for key, value in told.items() if value] + (["--exclusive"] if options.exclusive else [])


def _memory(job: Job) -> str | None:
    planned_gib = job.plan.get("host_memory_gib")
    return f"{math.ceil(planned_gib * MEMORY_FACTOR * 1024)}M" if planned_gib else None


def rendered(job: Job, options: SlurmOptions, python: str = sys.executable) -> Rendered:
    """What a submit writes and runs, on the machine where `python` is."""
    paths = RunPaths(job.folder)
    grace = options.grace_seconds if options.grace_seconds is not None else signal_margin_seconds(job, options)
    spec = with_python(spec_for(job, grace_seconds=grace, env=options.env), python)
    files = {str(paths.launch): spec.as_text(), str(paths.job_script): script(job, options, python)}
    for seed in options.seeds:
        files |= seeds.member_files(job, seed, spec, python)
    return Rendered(
        files=files,
        commands=(("sbatch", "--parsable", str(paths.job_script)),),
        notes=_notes(job, options),
    )


def _notes(job: Job, options: SlurmOptions) -> tuple[str, ...]:
    where = "a preflight names a node that cannot reach the others; the network interface is the route's to the first"
    life = f"at {options.signal}, {signal_margin_seconds(job, options)} s before the limit, it saves and is requeued"
    return ((where,) if job.nodes > 1 else ()) + ((life,) if options.max_requeues else ())


def script(job: Job, options: SlurmOptions, python: str = sys.executable) -> str:
    """The whole text that sbatch is given."""
    from jinja2 import Environment, StrictUndefined, TemplateError

    paths = RunPaths(job.folder)
    jinja = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    jinja.filters["quoted"] = shlex.quote
    file = Path(options.template) if options.template else assets.root() / TEMPLATE
    values: dict[str, Any] = {
        "run_id": job.run_id, "job_name": job_name(job.run_id), "folder": str(job.folder), "python": python,
        "nodes": job.nodes, "ranks_per_node": job.ranks_per_node, "device": job.device,
        "resources": resources(job, options), "time": time_limit(job, options), "seeds": options.seeds,
        "signal": options.signal, "stop_signal": options.stop_signal,
        "signal_margin_seconds": signal_margin_seconds(job, options), "max_requeues": options.max_requeues,
        "setup": options.setup, "extra": options.extra, "output": output(paths.job_log),
    }  # fmt: skip
    try:
        return jinja.from_string(file.read_text(encoding="utf-8")).render(values)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"the template cannot be read: {error}", key="launchers.slurm.template") from None
    except TemplateError as error:
        raise BadInput(
            f"the template cannot be filled: {error}", file=str(file), line=getattr(error, "lineno", None),
            key="launchers.slurm.template", allowed=", ".join(values),
        ) from None  # fmt: skip


def output(log: Path) -> str:
    """Where SLURM writes what the script says; nowhere where an #SBATCH line could not say the path."""
    return str(log) if re.fullmatch(r"[\w/.+@:,=-]+", str(log)) else "/dev/null"
