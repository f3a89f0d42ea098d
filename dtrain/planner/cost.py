"""Hours and dollars of a whole run: starting, training, evaluating, saving."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from dtrain.config.schema import Config
from dtrain.planner.kernels import BlockKey, head_seconds, passes
from dtrain.planner.setup import DTYPE_BYTES, Setup

PROCESS_START_SECONDS = 20.0
"""torchrun, imports and process groups of several ranks: 13 to 20 s measured on a CPU machine (stack_facts.md)."""
COMPILE_SECONDS = 60.0
"""torch.compile's first step of one kind of block; a cached second run is faster."""
READ_BYTES_PER_S = 1.5e9
"""Weights from a local NVMe drive into memory and onto the card, per node."""
WRITE_BYTES_PER_S = 1.0e9
"""A checkpoint onto a node's drive, fsync included; a network drive is slower."""
EXPORTED_BYTES = 2
"""Per parameter of the exported model, whatever the run held."""

MACHINE_START_SECONDS = 300.0
"""A rented machine from order to SSH: 3 to 5 min with one GPU, 10 to 15 min with eight (launch_facts.md, B.1)."""
MACHINE_START_SECONDS_PER_GPU = 50.0
INSTALL_SECONDS = 150.0
"""A cold install of the pinned stack: about 2.5 min (stack_facts.md)."""
DOWNLOAD_BYTES_PER_S = 200e6
"""Weights from the hub to a data centre."""


@dataclass(frozen=True)
class RunTime:
    """Seconds of one run on a machine that is up, and what a rented machine is billed before and around it."""

    start_seconds: float
    train_seconds: float
    evaluation_seconds: float
    checkpoint_seconds: float
    preparation_seconds: float
    """Of a rented machine: boot, install, download. Not part of the run's own hours."""

    @property
    def hours(self) -> float:
        return (self.start_seconds + self.train_seconds + self.evaluation_seconds + self.checkpoint_seconds) / 3600

    @property
    def billed_hours(self) -> float:
        return self.hours + self.preparation_seconds / 3600


@dataclass(frozen=True)
class RunCounts:
    """How much there is to do."""

    steps: int
    steps_per_epoch: int
    eval_rows: int
    mean_tokens: int
    """Real tokens of a mean sequence (packed row when packing); the window at most."""


def estimate_run(config: Config, setup: Setup, counts: RunCounts, mean_step_seconds: float) -> RunTime:
    """Seconds of a whole run. `mean_step_seconds` is a step at the real mean length of a sequence."""
    evaluations, saves = evaluation_count(config, counts), save_count(config, counts)
    return RunTime(
        start_seconds=start_seconds(setup),
        train_seconds=counts.steps * mean_step_seconds,
        evaluation_seconds=evaluations * evaluation_seconds(setup, counts),
        checkpoint_seconds=saves * checkpoint_seconds(setup) + export_seconds(setup),
        preparation_seconds=preparation_seconds(setup),
    )


# --- before the first step ----------------------------------------------------------------------------------------


def start_seconds(setup: Setup) -> float:
    """Processes, weights, and the first compilation."""
    weights = setup.facts.parameters * DTYPE_BYTES[setup.dtypes.compute]
    return PROCESS_START_SECONDS + weights / READ_BYTES_PER_S + (COMPILE_SECONDS if setup.compiled else 0.0)


def preparation_seconds(setup: Setup) -> float:
    boot = MACHINE_START_SECONDS + MACHINE_START_SECONDS_PER_GPU * setup.profile.gpus_per_node
    return boot + INSTALL_SECONDS + EXPORTED_BYTES * setup.facts.parameters / DOWNLOAD_BYTES_PER_S


# --- evaluations --------------------------------------------------------------------------------------------------


def times_in(counts: RunCounts, every_steps: int | None, per_epoch: int | None) -> int:
    """How often something happens that is said in steps or per epoch, and always after the last step."""
    if per_epoch is not None:
        every_steps = max(1, math.ceil(counts.steps_per_epoch / per_epoch))
    return math.ceil(counts.steps / every_steps) if every_steps else 1


def evaluation_count(config: Config, counts: RunCounts) -> int:
    """Evaluations of a run; none where nothing is held out."""
    return times_in(counts, config.eval_steps, config.evals_per_epoch) if counts.eval_rows else 0


def evaluation_seconds(setup: Setup, counts: RunCounts) -> float:
    """A forward pass over every held-out row, spread over the data-parallel ranks."""
    size = setup.eval_micro_batch_size or setup.micro_batch_size
    small = replace(setup, micro_batch_size=size, sequence_len=max(1, counts.mean_tokens))
    batches = math.ceil(counts.eval_rows / (size * setup.data_parallel_size))
    forward, _ = passes(BlockKey.of(small))
    head, loss = head_seconds(small)
    return batches * (max(forward.kernels, forward.launches) + (head + loss) / 3)


# --- checkpoints --------------------------------------------------------------------------------------------------


def save_count(config: Config, counts: RunCounts) -> int:
    return times_in(counts, config.save_steps, config.saves_per_epoch)


def checkpoint_bytes(setup: Setup) -> float:
    """Of the whole world: trained weights, masters and optimizer states."""
    dtypes = setup.dtypes
    per_parameter = DTYPE_BYTES[dtypes.weights] + setup.optimizer.state_bytes
    per_parameter += DTYPE_BYTES[dtypes.master] if dtypes.master else 0
    return setup.trained_parameters * per_parameter


def checkpoint_seconds(setup: Setup) -> float:
    return checkpoint_bytes(setup) / setup.profile.nodes / WRITE_BYTES_PER_S


def export_seconds(setup: Setup) -> float:
    """The exported folder is written by one rank, and read again to check it."""
    exported = EXPORTED_BYTES * setup.facts.parameters
    return exported / WRITE_BYTES_PER_S + exported / READ_BYTES_PER_S
