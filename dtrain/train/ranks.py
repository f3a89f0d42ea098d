"""Who this process is among the ranks, and the few words ranks say to each other on the CPU."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch

TIMEOUT = timedelta(minutes=30)
"""Of a collective. DeepSpeed's own default moved from 30 to 10 minutes (DeepSpeed#8253)."""

FOR_THREADS = timedelta(days=1)
"""A writer waits for the slowest rank's disk; whether training hangs is not its business."""


@dataclass(frozen=True)
class Ranks:
    rank: int
    local_rank: int
    world: int
    device: torch.device
    control: Any = None
    """A gloo group for small facts, so that the device is never waited for; None when alone."""
    on_one_row: int = 1
    """Neighbouring ranks that work on the same rows together, each on its tokens."""
    tensor_parallel: int = 1
    """Neighbouring ranks that work on the same tokens together, each with its part of every layer."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def data_ranks(self) -> int:
        """Groups of ranks that see different rows."""
        return self.world // (self.on_one_row * self.tensor_parallel)

    @property
    def data_rank(self) -> int:
        return self.rank // (self.on_one_row * self.tensor_parallel)

    @property
    def model_copies(self) -> int:
        """Groups of ranks that hold a whole model: DeepSpeed averages gradients over so many."""
        return self.world // self.tensor_parallel

    @property
    def model_copy(self) -> int:
        """This rank's."""
        return self.rank // self.tensor_parallel

    def any(self, flag: bool) -> bool:
        """True on every rank when it is true on one."""
        return self.greatest(int(flag)) > 0

    def greatest(self, number: int) -> int:
        if self.control is None:
            return number
        told = torch.tensor([number], dtype=torch.int64)
        torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX, group=self.control)
        return int(told.item())

    def total(self, number: float) -> float:
        """The sum over the copies of the model; the ranks of one say the same number."""
        if self.control is None:
            return number
        told = torch.tensor([number], dtype=torch.float64)
        torch.distributed.all_reduce(told, group=self.control)
        return float(told.item()) / self.tensor_parallel

    def gather(self, thing: Any) -> list[Any]:
        """What each rank said, in order of ranks."""
        if self.control is None:
            return [thing]
        told: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(told, thing, group=self.control)
        return told

    def wait(self) -> None:
        if self.control is not None:
            torch.distributed.barrier(group=self.control)


def with_own_group(ranks: Ranks) -> Ranks:
    """The same ranks with a control group of their own, for a second thread. A collective."""
    if ranks.control is None:
        return ranks
    return replace(ranks, control=torch.distributed.new_group(backend="gloo", timeout=FOR_THREADS))


def from_environment(on_one_row: int = 1, tensor_parallel: int = 1) -> Ranks:
    """What torchrun told this process, before any process group."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return Ranks(rank, local_rank, world, device, on_one_row=on_one_row, tensor_parallel=tensor_parallel)


def join(ranks: Ranks) -> Ranks:
    """Start the process group (nccl on GPUs, gloo on CPUs) and the control group."""
    import deepspeed

    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
    else:
        # DeepSpeed would compile a shared-memory helper for a minute, which needs Python's headers and leaves segments
        # behind when a rank is killed; gloo does the same work
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")  # a rank started by hand, alone
    os.environ.setdefault("MASTER_PORT", "29500")
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    backend = "nccl" if ranks.device.type == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, timeout=TIMEOUT, auto_mpi_discovery=False, verbose=False)
    control = torch.distributed.new_group(backend="gloo", timeout=TIMEOUT) if ranks.world > 1 else None
    return replace(ranks, control=control)
