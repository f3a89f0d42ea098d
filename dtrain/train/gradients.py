"""Letting go of gradients that are not to be stepped with."""

from __future__ import annotations

from typing import Any


def drop(optimizer: Any) -> None:
    """Forget what backward passes have gathered since the last step, at any ZeRO stage, offloaded or not.

    It is what DeepSpeed does itself with an fp16 step that overflows (stage_1_and_2.py and stage3.py, `step`).
    """
    optimizer.zero_grad(set_to_none=True)
    if not hasattr(optimizer, "averaged_gradients"):  # stage 0: gradients lie in the parameters
        return
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # ZeRO-3
        optimizer.averaged_gradients = {}
    else:
        from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID

        optimizer.micro_step_id = INITIAL_MICRO_STEP_ID
        optimizer._release_preflattened_grad_buffers()
        for group in optimizer.averaged_gradients:
            optimizer.averaged_gradients[group] = optimizer.all_grad_tensors[group] = None
        if optimizer.cpu_offload:
            optimizer._offload_accumulated_param_ids = set()
    if getattr(optimizer, "cpu_offload", False) or getattr(optimizer, "offload_optimizer", False):
        optimizer.reset_cpu_buffers()
