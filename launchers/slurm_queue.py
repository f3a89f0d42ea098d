"""Asking SLURM, and what its answers mean. Text formats, not --json: its shape changes between versions."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dtrain.errors import LauncherRefused

ASK_SECONDS = 30.0
"""A loaded controller answers late; after this it counts as not answering."""

FINISHED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "SPECIAL_EXIT", "TIMEOUT",
}  # fmt: skip
"""Job states after which nothing of the job runs; a requeued job is PENDING again."""
CAN_GO_ON = {"CANCELLED", "DEADLINE", "NODE_FAIL", "PREEMPTED", "TIMEOUT", "BOOT_FAIL", "REVOKED"}
"""Of these, the ones that say nothing against the run itself."""


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


class Cluster(Protocol):
    """Where SLURM's commands run: this login node, or one behind SSH. Equal ones are the same place."""

    def __hash__(self) -> int: ...

    def has(self, command: str) -> bool: ...

    def run(self, command: Sequence[str], text: str = "") -> Said:
        """The command with `text` on its input; code 124 when it did not answer in time."""


@dataclass(frozen=True)
class ThisMachine:
    """A login node where dtrain itself runs."""

    def has(self, command: str) -> bool:
        return shutil.which(command) is not None

    def run(self, command: Sequence[str], text: str = "") -> Said:
        try:
            done = subprocess.run(
                list(command), input=text, capture_output=True, text=True, timeout=ASK_SECONDS, errors="replace"
            )
        except subprocess.TimeoutExpired:
            return Said(124, "", f"{command[0]} did not answer within {ASK_SECONDS:g} s")
        except OSError as error:
            return Said(127, "", f"{command[0]}: {error.strerror}")
        return Said(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class QueuedJob:
    """A line of squeue."""

    id: str
    state: str
    reason: str = ""
    starts: str = ""
    """When SLURM expects it to start, local time of the cluster; empty when it does not say."""
    nodes: str = ""

    @property
    def is_over(self) -> bool:
        return self.state in FINISHED

    @property
    def is_pending(self) -> bool:
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "RESV_DEL_HOLD")

    def waits_for(self) -> str:
        """For people: SLURM's reason in its word and ours, and the expected start."""
        words = _REASONS.get(self.reason, "")
        told = "waiting in the queue"
        if self.reason:
            told += f": {self.reason}" + (f" ({words})" if words else "")
        return told + (f"; SLURM expects it to start at {self.starts}" if self.starts else "")


_REASONS = {
    "Resources": "for nodes to become free",
    "Priority": "other jobs come first",
    "BeginTime": "it was requeued, or asked for a later start",
    "Dependency": "for another job",
    "ReqNodeNotAvail": "a node it needs is down or reserved",
    "PartitionTimeLimit": "its time limit is over the partition's: it would wait for ever",
    "PartitionNodeLimit": "the partition is too small: it would wait for ever",
    "PartitionDown": "the partition takes no jobs now",
    "JobHeldUser": "held: scontrol release starts it",
    "JobHeldAdmin": "held by an administrator",
    "QOSMaxGRESPerUser": "your other jobs use all GPUs the QoS gives you",
    "AssocGrpGRES": "your account uses all its GPUs",
}
"""The reasons people meet most (squeue's manual, JOB REASON CODES)."""

_FORMAT = "%i|%T|%S|%N|%r"


def jobs_named(cluster: Cluster, name: str) -> list[QueuedJob]:
    """Every job of that name that the controller still knows, oldest first. LauncherRefused when it does not answer."""
    command = ["squeue", "--noheader", "--array", "--states=all", f"--name={name}", f"--format={_FORMAT}"]
    said = cluster.run(command)
    if said.code != 0:
        raise LauncherRefused(f"SLURM does not answer: {last_line(said.err)}", fix="squeue, sinfo: is it up?")
    return sorted(map(_parsed, said.out.splitlines()), key=lambda job: _number(job.id))


def _parsed(line: str) -> QueuedJob:
    number, state, starts, nodes, reason = line.strip().split("|", 4)
    known = "" if starts in ("N/A", "Unknown") else starts.replace("T", " ")
    return QueuedJob(number, state, "" if reason == "None" else reason.strip("()"), known, nodes)


def _number(job_id: str) -> int:
    digits = job_id.partition("_")[0]
    return int(digits) if digits.isdigit() else 0


def accounted_state(cluster: Cluster, job_id: str) -> str | None:
    """The job's last state by sacct; None where there is no accounting or it does not know the job."""
    if not cluster.has("sacct"):
        return None
    said = cluster.run(["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job_id}", "--format=State"])
    states = [line.split()[0] for line in said.out.splitlines() if line.strip()]  # "CANCELLED by 1000"
    return states[-1] if said.code == 0 and states else None


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def partitions(cluster: Cluster) -> list[str]:
    said = cluster.run(["sinfo", "--noheader", "--format=%R"])
    return sorted(set(said.out.split())) if said.code == 0 else []


def gpus_per_node(cluster: Cluster, partition: str | None) -> int | None:
    """The most GPUs of one node; None where sinfo does not tell."""
    where = [f"--partition={partition}"] if partition else []
    said = cluster.run(["sinfo", "--noheader", "--Node", "--format=%G", *where])
    counts = [gpus_in(line) for line in said.out.split()]
    return max(counts) if said.code == 0 and counts else None


def gpus_in(gres: str) -> int:
    """`gpu:a100:8(S:0-1),nic:2` → 8."""
    entries = [entry.partition("(")[0].split(":") for entry in gres.split(",")]
    return sum(int(entry[-1]) for entry in entries if entry[0] == "gpu" and entry[-1].isdigit())


def partition_limit(cluster: Cluster, partition: str | None) -> str | None:
    """The longest time the partition (or the default one) gives a job, as sinfo prints it."""
    where = [f"--partition={partition}"] if partition else []
    said = cluster.run(["sinfo", "--noheader", "--format=%P|%l", *where])
    rows = [line.split("|") for line in said.out.splitlines() if "|" in line]
    mine = [limit for name, limit in rows if partition or name.endswith("*")]
    return mine[0].strip() if said.code == 0 and mine else None
