"""What torch's caching allocator holds beside live tensors: memory_reserved over memory_allocated."""

from __future__ import annotations

from dtrain.planner.setup import Setup
from dtrain.planner.states import States

FRAGMENTATION = 1.04
"""Reserved over what is needed at the fullest moment: rounding, split blocks, freed ones of other sizes. Over allocated
memory alone 1.03 to 1.25 were seen (planning_facts.md); the idle pools below are a part of that."""
EXPANDABLE_FRAGMENTATION = 1.02


def fragmentation(setup: Setup) -> float:
    if setup.profile.is_cpu:
        return 1.0
    return EXPANDABLE_FRAGMENTATION if setup.expandable_segments else FRAGMENTATION


def idle_gradients(setup: Setup, states: States, gradients: float) -> float:
    """Bytes that wait in the reduce-scatter stream's pool while sharded gradients are not all there.

    FSDP2 makes them on that stream (torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py, foreach_reduce), and
    the allocator gives a stream's blocks to no other one.
    """
    if setup.sharding != "fsdp2" or setup.profile.is_cpu:
        return 0.0
    return max(0.0, states.gradients - gradients)


def idle_blocks(setup: Setup, forward_working: float) -> float:
    """Bytes of a recomputed block's tensors that logits cannot take: each large tensor is a segment of its own size
    (c10/cuda/CUDACachingAllocator.cpp, from 10 MiB on), and segments are not joined unless they are expandable."""
    apart = setup.checkpointing != "none" and not setup.expandable_segments and not setup.profile.is_cpu
    return forward_working if apart else 0.0
