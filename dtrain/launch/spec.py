"""launch.json: all that a supervisor starts, decided before it starts. What `--dry-run` prints is what is read here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from dtrain.errors import RunFailed
from dtrain.hardware.this_machine import cores
from dtrain.launch.api import Job
from dtrain.launch.process import RUN_MARK
from dtrain.paths import RunPaths

DEFAULT_GRACE_SECONDS = 120.0
"""How long ranks may take to finish a step and save once they are told to stop."""

MONITOR_SECONDS = 30.0
"""torchrun looks after its ranks only this often: its look takes the exit code of a rank that died just then. The
supervisor sees a dead rank first and ends the run itself, in seconds, where torchrun would wait half a minute for the
other ranks. In between a dead rank keeps its exit code in /proc."""

_OF_ANOTHER_RUN = ("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "TORCHRUN_")
"""What torchrun tells its ranks; a launch from inside another run must not hand it on."""

ANY_FREE_PORT = "127.0.0.1:0"

FIRST_NODE, IS_FIRST, THIS_NODE = "FIRST_NODE:PORT", "is_host=IS_FIRST", "THIS_NODE"
"""In the torchrun command of several nodes, what is only known where and when they start."""


@dataclass(frozen=True)
class LaunchSpec:
    """What one machine runs for a run."""

    run_id: str
    prepare: tuple[str, ...]
    """The command that tokenises the data, started beside the ranks; empty where another machine does it."""
    ranks: tuple[str, ...]
    """The torchrun command."""
    ranks_per_node: int
    """On this machine, and on each of the others where there are several."""
    device: Literal["cuda", "cpu"]
    working_directory: str
    """Where the run was launched: relative paths of the config mean this folder."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Wins over what `environment` fills in."""
    grace_seconds: float = DEFAULT_GRACE_SECONDS
    nodes: int = 1

    def as_json(self) -> dict[str, Any]:
        return {"schema_version": 1, **asdict(self)}

    def as_text(self) -> str:
        return json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n"

    @property
    def machines(self) -> int:
        """That its ranks are on, also where a supervisor of its own watches over each of them (`nodes` 1)."""
        return int(self.ranks[self.ranks.index("--nnodes") + 1]) if "--nnodes" in self.ranks else self.nodes

    @classmethod
    def read(cls, paths: RunPaths) -> LaunchSpec:
        try:
            return cls.of_text(paths.launch.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError) as error:
            raise RunFailed("launch.json cannot be read", file=str(paths.launch), value=str(error)) from None

    @classmethod
    def of_text(cls, text: str) -> LaunchSpec:
        """ValueError or KeyError when it is not one."""
        told = json.loads(text)
        known = {one.name: told[one.name] for one in fields(cls)}
        return replace(cls(**known), prepare=tuple(known["prepare"]), ranks=tuple(known["ranks"]))


def prepare_command(folder: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "dtrain.data.prepare", folder)


def worker_arguments(folder: str) -> tuple[str, ...]:
    """What torchrun starts on each rank, behind its own flags."""
    return ("-m", "dtrain", "train", folder)


def torchrun_command(job: Job, port: int | None = None) -> tuple[str, ...]:
    """One node: without a port torchrun binds a free one itself, so no other program can take it in between.

    Several nodes: the rendezvous is on the first one, and `at_place` fills in where that is.
    """
    alone = f"127.0.0.1:{port}" if port else ANY_FREE_PORT
    endpoint, host, address = (alone, "is_host=1", "127.0.0.1") if job.nodes == 1 else (FIRST_NODE, IS_FIRST, THIS_NODE)
    return (
        sys.executable, "-m", "torch.distributed.run",
        "--nnodes", str(job.nodes), "--nproc-per-node", str(job.ranks_per_node), "--max-restarts", "0",
        "--monitor-interval", str(MONITOR_SECONDS),
        # a SIGTERM is the supervisor's business: torchrun would kill ranks that are still saving after half a minute
        "--signals-to-handle", "SIGQUIT",
        # is_host: at a taken port torchrun fails; without it, it would wait for ever on whoever listens there
        "--rdzv-backend", "c10d", "--rdzv-conf", host, "--rdzv-id", job.run_id, "--local-addr", address,
        "--rdzv-endpoint", endpoint,
        *worker_arguments(str(job.folder)),
    )  # fmt: skip


def with_free_port(ranks: tuple[str, ...]) -> tuple[str, ...]:
    """The same torchrun command at whatever port is free."""
    place = ranks.index("--rdzv-endpoint") + 1
    return (*ranks[:place], ANY_FREE_PORT, *ranks[place + 1 :])


def of_life(ranks: tuple[str, ...], life: int) -> tuple[str, ...]:
    """The same torchrun command for a later life: its rendezvous has another name than the one that may be dying."""
    if "--rdzv-id" not in ranks:
        return ranks
    place = ranks.index("--rdzv-id") + 1
    return (*ranks[:place], f"{ranks[place]}-{life}", *ranks[place + 1 :])


def endpoint_of(ranks: tuple[str, ...]) -> str:
    """Where the ranks of a torchrun command meet: `ADDRESS:PORT`."""
    return ranks[ranks.index("--rdzv-endpoint") + 1]


def at_place(ranks: tuple[str, ...], first: str, is_first: bool, address: str) -> tuple[str, ...]:
    """The torchrun command of several nodes on one of them: `first` is the first node's address and port."""
    known = {FIRST_NODE: first, IS_FIRST: f"is_host={int(is_first)}", THIS_NODE: address}
    return tuple(known.get(word, word) for word in ranks)


def with_python(spec: LaunchSpec, python: str) -> LaunchSpec:
    """The same run with another interpreter: that of the machine it is sent to."""

    def there(command: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(python if word == sys.executable else word for word in command)

    return replace(spec, prepare=there(spec.prepare), ranks=there(spec.ranks))


def spec_for(
    job: Job,
    *,
    grace_seconds: float = DEFAULT_GRACE_SECONDS,
    port: int | None = None,
    env: Mapping[str, str] | None = None,
) -> LaunchSpec:
    """The run, started from the current folder."""
    return LaunchSpec(
        run_id=job.run_id,
        prepare=prepare_command(str(job.folder)),
        ranks=torchrun_command(job, port),
        ranks_per_node=job.ranks_per_node,
        device=job.device,
        working_directory=job.working_directory or os.getcwd(),
        env={**job.env, **(env or {})},
        grace_seconds=grace_seconds,
        nodes=job.nodes,
    )


def environment(spec: LaunchSpec, outer: Mapping[str, str], interface: str = "lo") -> dict[str, str]:
    """What the run's processes see: explicit defaults, over them the caller's environment, then the spec's own.

    `interface` is the network interface over which the ranks talk. On one machine the loopback always works, while a
    host name may not resolve.
    """
    defaults = {
        "OMP_NUM_THREADS": str(max(1, cores() // spec.ranks_per_node)),
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": f"={interface}",  # `=`: NCCL takes a bare name for a prefix
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    # a file in the working directory must not be taken for a library of the same name
    fixed = {RUN_MARK: spec.run_id, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
    if spec.device == "cpu":
        fixed |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    kept = {name: value for name, value in outer.items() if not name.startswith(_OF_ANOTHER_RUN)}
    return {**defaults, **kept, **fixed, **spec.env}
