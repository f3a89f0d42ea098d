"""What SLURM would refuse, asked before anything is written: SLURM's words plus ours."""

from __future__ import annotations

from dtrain.errors import BadInput
from dtrain.launch.api import Job

from .slurm_options import SlurmOptions, seconds_of
from .slurm_queue import Cluster, gpus_in, gpus_per_node, last_line, partition_limit, partitions
from .slurm_script import time_limit


def problems(cluster: Cluster, job: Job, options: SlurmOptions, script: str) -> list[str]:
    """BadInput for what the person can mend in the config; a line for anything else sbatch says against it."""
    _refuse_unknown_partition(cluster, options)
    _refuse_too_many_gpus(cluster, job, options)
    _refuse_too_long(cluster, job, options)
    said = cluster.run(["sbatch", "--test-only"], script)
    return [] if said.code == 0 else [_told(last_line(said.err), options)]


def _refuse_unknown_partition(cluster: Cluster, options: SlurmOptions) -> None:
    known = partitions(cluster)
    for name in (options.partition or "").split(","):
        if name and known and name not in known:
            raise BadInput(
                "SLURM has no such partition", key="launchers.slurm.partition", value=name, allowed=", ".join(known)
            )


def _refuse_too_many_gpus(cluster: Cluster, job: Job, options: SlurmOptions) -> None:
    wanted = gpus_in(options.gres) if options.gres else (job.ranks_per_node if job.device == "cuda" else 0)
    most = gpus_per_node(cluster, options.partition) if wanted else None
    if most is not None and wanted > most:
        where = f"of partition {options.partition}" if options.partition else "of this cluster"
        raise BadInput(
            f"the job wants {wanted} GPUs a node, and a node {where} has {most} at most",
            key="launchers.slurm.gres" if options.gres else "--profile", value=options.gres or job.ranks_per_node,
            allowed=f"up to {most}", fix="a profile with fewer GPUs a node, or another partition: sinfo -o '%P %G'",
        )  # fmt: skip


def _refuse_too_long(cluster: Cluster, job: Job, options: SlurmOptions) -> None:
    """Such a job would wait for ever in most clusters."""
    wanted, limit = time_limit(job, options), partition_limit(cluster, options.partition)
    wanted_seconds = seconds_of(wanted) if wanted else None
    limit_seconds = seconds_of(limit.upper()) if limit and limit[:1].isdigit() else None
    if wanted_seconds is None or limit_seconds is None or wanted_seconds <= limit_seconds:
        return
    source = "the time limit" if options.time else "the time limit that follows from the plan"
    raise BadInput(
        f"{source} is longer than the partition's", key="launchers.slurm.time", value=wanted, allowed=f"up to {limit}",
        fix=f"--set launchers.slurm.time={limit}: at the limit the run saves, is requeued and goes on",
    )  # fmt: skip


def _told(words: str, options: SlurmOptions) -> str:
    """sbatch's refusal; a mistake in one of our options is the person's (BadInput), with its name."""
    words = words.removeprefix("sbatch: error: ").removeprefix("allocation failure: ")
    for key, sign in _SIGNS:
        value = getattr(options, key)
        if sign in words.lower() and value is not None:
            raise BadInput(f"SLURM refuses it: {words}", key=f"launchers.slurm.{key}", value=value, fix=_FIXES.get(key))
    return f"sbatch says: {words}"


_SIGNS = (
    ("account", "invalid account"),
    ("qos", "invalid qos"),
    ("partition", "invalid partition"),
    ("constraint", "invalid feature"),
    ("reservation", "reservation"),
    ("nodelist", "invalid node name"),
    ("exclude", "invalid node name"),
    ("mem", "memory"),
    ("gres", "gres"),
)
"""Option, and what SLURM says when it is wrong (slurm_errno.c)."""
_FIXES = {
    "account": "sacctmgr show associations user=$USER lists yours",
    "qos": "sacctmgr show associations user=$USER format=account,qos lists yours",
    "constraint": "sinfo -o '%N %f' lists what nodes have",
    "reservation": "scontrol show reservation",
}
