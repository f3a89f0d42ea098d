"""One run for several seeds, as members of a job array: each in `OUTPUT_DIR/seed-N`, one exit.json over all.

`python -m dtrain.launch.seeds OUTPUT_DIR` writes the exit.json of the whole once every member has one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dtrain.launch.api import Job
from dtrain.launch.ending import DONE, FAILED, INTERRUPTED, Ending, put_aside
from dtrain.launch.spec import LaunchSpec, spec_for, with_python
from dtrain.paths import RunPaths


def member(job: Job, seed: int) -> Job:
    """The run with one of its seeds. Its processes carry an id of their own: two members may share a node."""
    name = f"seed-{seed}"
    config = {**job.config, "seed": seed, "output_dir": str(job.folder / name)}
    return replace(job, run_id=f"{job.run_id}-{name}", folder=job.folder / name, config=config)


def member_files(job: Job, seed: int, spec: LaunchSpec, python: str) -> dict[str, str]:
    """What a worker needs, for one member: path → content. `spec` says what is the same for all."""
    from dtrain.config.load import as_yaml  # only a launch needs the whole schema

    one = member(job, seed)
    paths = RunPaths(one.folder)
    own = with_python(spec_for(one, grace_seconds=spec.grace_seconds, env=spec.env), python)
    return {
        str(paths.config): as_yaml(dict(one.config)),
        str(paths.plan): json.dumps(dict(one.plan), indent=2, ensure_ascii=False) + "\n",
        str(paths.launch): own.as_text(),
    }


def members(paths: RunPaths) -> list[RunPaths]:
    return [RunPaths(folder) for folder in sorted(paths.output.glob("seed-*")) if RunPaths(folder).plan.exists()]


def begin_again(paths: RunPaths) -> None:
    """Members that did not finish may have another life; a finished one stays finished."""
    for one in members(paths):
        ending = Ending.read(one)
        if ending is not None and ending.code != DONE:
            put_aside(one)


def ending_of(named: Sequence[tuple[str, Ending]]) -> Ending:
    """Of all members: failed if one failed, else interrupted if one was, else done; each is told that is not done."""
    wrong = [(name, one) for name, one in named if one.code != DONE]
    codes = {one.code for _, one in wrong}
    code = next(iter(codes - {INTERRUPTED}), FAILED) if codes - {INTERRUPTED} else (INTERRUPTED if codes else DONE)
    told = "; ".join(f"{name}: {one.reason}" for name, one in wrong)
    last = max((one for _, one in named), key=lambda one: one.ended)
    return Ending(code, told or f"done: {', '.join(name for name, _ in named)}", last.step, last.ended)


def end(paths: RunPaths) -> Ending | None:
    """Write the exit.json of the whole; None while a member still runs or waits."""
    found = [(one.output.name, Ending.read(one)) for one in members(paths)]
    named = [(name, one) for name, one in found if one is not None]
    if not named or len(named) < len(found):
        return None
    ending = ending_of(named)
    ending.write(paths)
    return ending


if __name__ == "__main__":
    end(RunPaths(Path(sys.argv[1])))
