"""At which ZeRO stages an optimizer, with its masters, does what it does alone; what it cannot stand beside."""

from __future__ import annotations

from collections.abc import Iterator

from dtrain.config.origins import Loaded
from dtrain.config.schema import Config
from dtrain.config.tree import error_at
from dtrain.errors import BadInput
from dtrain.models.facts import ModelFacts
from dtrain.planner.choice import Precision

ON_THE_CARD = (
    "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "paged_lion_8bit", "lion_32bit",
    "paged_lion_32bit", "muon",
)  # fmt: skip
"""bitsandbytes' optimizers and Muon step on the card: their states cannot live in host memory under ZeRO-Offload."""

ALL_STAGES = frozenset({0, 1, 2, 3})


def stages_of(config: Config, precision: Precision) -> frozenset[int]:
    """ZeRO stages that the config's optimizer and masters allow.

    Muon: at stage 1 in bf16 DeepSpeed (0.19.8) clips the gradient and then orthogonalises. At stage 1 in fp32 and at 2
    and 3 it does so before it clips, and a clipped update is a far shorter step; its norm is not the gradient's; at
    stages 1 and 2 a matrix on the border of two ranks has its momentum on both, at 3 momentum passes through bf16.
    """
    if config.optimizer == "adafactor":
        return frozenset({0})  # it scales by whole matrices, which the higher stages cut
    if config.plan_as is not None:
        return ALL_STAGES
    if config.optimizer == "muon":
        return frozenset({0, 1}) if precision == "bf16" else frozenset({0})
    return frozenset({1, 2, 3}) if config.master_weights == "bf16" else ALL_STAGES


def optimizer_errors(loaded: Loaded, facts: ModelFacts, precision: Precision) -> list[BadInput]:
    """Everything about the optimizer and its masters that launch could not do."""
    config = loaded.config
    if config.plan_as is not None:
        return []
    errors = list(_stage(loaded, precision))
    if config.optimizer in ON_THE_CARD and config.offload_optimizer in ("cpu", "nvme"):
        message, fix = "steps on the card and cannot be offloaded", "optimizer: adamw_torch, or offload_optimizer: none"
        errors.append(_at(loaded, "offload_optimizer", f"{config.optimizer} {message}", config.offload_optimizer, fix))
    if config.optimizer == "muon":
        errors += _muon(loaded, facts, precision)
    if config.master_weights == "bf16":
        errors += _bf16_masters(loaded, precision)
    return errors


def _stage(loaded: Loaded, precision: Precision) -> Iterator[BadInput]:
    config = loaded.config
    stage, allowed = config.zero_stage, stages_of(loaded.config, precision)
    if stage == "auto" or stage in allowed:
        return
    can = ", ".join(str(one) for one in sorted(allowed))
    if config.optimizer == "adafactor":
        message = f"adafactor scales by whole matrices, and ZeRO stage {stage} gives each rank parts of them"
        yield _at(loaded, "optimizer", message, "adafactor", "zero_stage: 0, or optimizer: adamw_bnb_8bit")
    elif config.optimizer == "muon":
        message = f"at stage {stage} in {precision} DeepSpeed clips what Muon has made of the gradients, not gradients"
        yield _at(loaded, "zero_stage", message, stage, f"zero_stage: {max(allowed)}", f"{can}, auto")
    else:
        message = "DeepSpeed has bf16 masters from stage 1 on"
        yield _at(loaded, "master_weights", message, "bf16", "zero_stage: 1, or master_weights: fp32")


def _muon(loaded: Loaded, facts: ModelFacts, precision: Precision) -> Iterator[BadInput]:
    config, other = loaded.config, "optimizer: adamw_torch"
    if config.adapter is not None:
        message = "muon is for full training: an adapter's matrices are thin by design"
        yield _at(loaded, "optimizer", message, "muon", f"{other}, or leave adapter out")
    if facts.experts:
        message = f"the experts of {facts.name} are one tensor of three dimensions, and Muon steps matrices"
        yield _at(loaded, "optimizer", message, "muon", other)
    if precision == "fp16":
        message = "Muon's steps do not know of fp16's loss scale"
        yield _at(loaded, "optimizer", message, "muon", f"bf16: true, or {other}")


def _bf16_masters(loaded: Loaded, precision: Precision) -> Iterator[BadInput]:
    config, key, usual = loaded.config, "master_weights", "master_weights: fp32"
    if precision != "bf16":
        yield _at(loaded, key, f"the run computes in {precision}", "bf16", f"bf16: true, or {usual}")
    if config.offload_optimizer in ("cpu", "nvme"):
        message = "beside offloaded states DeepSpeed wants its own CPU optimizer"
        yield _at(loaded, key, message, "bf16", f"offload_optimizer: none, or {usual}")
    if config.optimizer in ("muon", "adafactor"):
        message = f"{config.optimizer} keeps fp32 masters"
        yield _at(loaded, key, message, "bf16", f"optimizer: adamw_torch, or {usual}")


def _at(loaded: Loaded, key: str, message: str, value: object, fix: str, allowed: str | None = None) -> BadInput:
    return error_at(loaded.origin(key), key, message, value=value, fix=fix, allowed=allowed)
