"""DeepSpeed, told everything: its defaults move between versions, so each value that matters is written here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from dtrain.config.schema import Config
from dtrain.planner.choice import Choice
from dtrain.planner.setup import ZeroBuckets
from dtrain.train import tensor_parallel


def deepspeed_config(
    config: Config, choice: Choice, parameters: int, buckets: ZeroBuckets, trained: int | None = None
) -> dict[str, Any]:
    """The whole DeepSpeed config of a run. `parameters`: of the model; no bucket is larger than it. `trained`: those
    that have gradients, where adapters leave the others frozen; DeepSpeed allocates its reduce buckets whole."""
    zero: dict[str, Any] = {
        "stage": choice.zero_stage,
        "overlap_comm": buckets.overlap and choice.zero_stage > 0,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": min(buckets.reduce, trained or parameters),
        "allgather_bucket_size": min(buckets.allgather, parameters),
        "round_robin_gradients": False,
    }
    if choice.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": min(buckets.prefetch, parameters),
            "stage3_param_persistence_threshold": buckets.persistence,
            "stage3_max_live_parameters": buckets.max_live,
            "stage3_max_reuse_distance": buckets.max_live,
            "stage3_gather_16bit_weights_on_model_save": False,
        }
    pin = torch.cuda.is_available()
    if choice.offload_optimizer != "none":
        zero["offload_optimizer"] = {"device": choice.offload_optimizer, "pin_memory": pin}
    if choice.offload_params != "none":
        zero["offload_param"] = {"device": choice.offload_params, "pin_memory": pin}
    return {
        "train_micro_batch_size_per_gpu": choice.micro_batch_size,
        "gradient_accumulation_steps": choice.gradient_accumulation_steps,
        "gradient_clipping": clipping(config, choice),
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": _bf16(config, choice),
        "fp16": {
            "enabled": choice.precision == "fp16", "loss_scale": 0, "initial_scale_power": 16,
            "loss_scale_window": 1000, "hysteresis": 2, "min_loss_scale": 1,
        },
        "data_types": _summed_in(config, choice),
        "prescale_gradients": False,
        "wall_clock_breakdown": False,
        "steps_per_print": 2**31,
        "checkpoint": {"tag_validation": "Fail"},
        **tensor_parallel.autotp_section(config.tensor_parallel_size),
    }  # fmt: skip


def _bf16(config: Config, choice: Choice) -> dict[str, bool]:
    """DeepSpeed can hold masters and moments in bf16 at stages 1 to 3."""
    low = config.master_weights == "bf16"
    masters = {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True} if low else {}
    return {"enabled": choice.precision == "bf16", **masters}


def _summed_in(config: Config, choice: Choice) -> dict[str, str]:
    """Stage 0 cannot sum 16-bit gradients in fp32 (engine._do_optimizer_sanity_check). Without fp32 masters they are
    summed in bf16: stage 1 would take another optimizer for fp32 sums, which has fp32 masters always."""
    if choice.zero_stage == 0:
        return {}
    return {"grad_accum_dtype": "bf16" if config.master_weights == "bf16" else "fp32"}


def clipping(config: Config, choice: Choice) -> float:
    """What DeepSpeed clips to; 0 where our loop clips itself (fp32 without ZeRO, where DeepSpeed tells no norm)."""
    return 0.0 if clips_itself(choice) else config.max_grad_norm


def clips_itself(choice: Choice) -> bool:
    return choice.zero_stage == 0 and choice.precision in ("fp32", "tf32")


OURS = ("optimizer", "scheduler", "gradient_clipping", "train_batch_size")
"""Sections of a DeepSpeed file that the loop owns. Their values were compared with the config's when it was read.
DeepSpeed would count a row once for each rank it lies on."""


def merged_with_file(built: Mapping[str, Any], said: Mapping[str, Any] | None) -> dict[str, Any]:
    """The person's own DeepSpeed JSON (its "auto" values already filled) over what we would write."""
    merged = dict(built)
    for key, value in (said or {}).items():
        merged[key] = merged_with_file(merged.get(key) or {}, value) if isinstance(value, Mapping) else value
    return merged


def send_as_they_lie(engine: Any, stage: int) -> None:
    """DeepSpeed copies gradients into one tensor to send them (engine.py, allreduce_and_copy). At stage 1 in bf16 they
    lie in few tensors already, as large as the model in fp32: each is sent alone, without the copy."""
    if stage != 1:
        return
    send = engine.allreduce_and_copy

    def one_by_one(tensors: list[torch.Tensor], *told: Any) -> None:
        for tensor in tensors:
            send([tensor], *told)

    engine.allreduce_and_copy = one_by_one
    engine.flatten = lambda tensors: tensors[0].view(-1)


def set_learning_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_scale", 1.0)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """The global gradient norm before clipping; no gradient is sharded by ZeRO (stage 0)."""
    clipped = list(parameters)
    norm = tensor_parallel.total_norm(clipped)
    torch.nn.utils.clip_grads_with_norm_(clipped, max_norm if max_norm > 0 else float("inf"), norm, foreach=False)
    return norm


def gradient_norm(engine: Any) -> float | None:
    """The norm DeepSpeed computed at its last step; a device sync, so asked for only at a step that logs."""
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)
