"""What the person has fixed, from the config's own keys: the planner searches only what is left open."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Literal

from dtrain.config.launchable import can_launch
from dtrain.config.origins import DEFAULT, Loaded
from dtrain.config.rules import SHARDING
from dtrain.config.schema import Config
from dtrain.errors import BadInput, BadInputs
from dtrain.hardware.profiles import Profile
from dtrain.models.facts import ModelFacts
from dtrain.planner import sparse_attention
from dtrain.planner.batch import divisors
from dtrain.planner.choice import Precision
from dtrain.planner.layout import adaptable_names
from dtrain.planner.nvme import nvme_errors
from dtrain.planner.optimizer_pins import ON_THE_CARD, optimizer_errors, stages_of
from dtrain.planner.parallel import OWN_ATTENTION, parallel_errors, unsharded_in_16_bits
from dtrain.planner.positions import position_errors
from dtrain.planner.quantised import quantised_base_errors

Offload = Literal["none", "cpu", "nvme"]
Checkpointing = Literal["none", "full", "selective", "offload"]
CrossEntropy = Literal["eager", "chunked", "compiled", "fused"]

CHECKPOINTING: tuple[Checkpointing, ...] = ("none", "selective", "full", "offload")
CROSS_ENTROPY: tuple[CrossEntropy, ...] = ("chunked", "eager")
ATTENTION = ("flash_attention_3", "flash_attention_2", "sdpa")
"""What may be chosen by itself, as far as launch runs it. Eager attention needs more memory and more time than sdpa."""
LEAST_CAPABILITY = {"flash_attention_3": (9, 0), "flash_attention_2": (8, 0), "varlen": (8, 0), "flex": (7, 0)}
"""Hopper; Ampere (torch's varlen is FlashAttention 2); Triton's own least."""
OWN_SDPA = frozenset({"falcon", "stablelm"})
"""Families of OWN_ATTENTION that run torch's sdpa (`_supports_sdpa`, transformers 5.23); the others write it out."""


@dataclass(frozen=True)
class Space:
    """The values of each dimension that may be chosen; one value where it is pinned."""

    zero_stages: tuple[int, ...]
    offload_optimizer: tuple[Offload, ...]
    offload_params: tuple[Offload, ...]
    checkpointing: tuple[Checkpointing, ...]
    """This one, attention and cross_entropy: what is simplest, or best by itself, comes first."""
    attention: tuple[str, ...]
    cross_entropy: tuple[CrossEntropy, ...]
    sequence_parallel: tuple[int, ...]
    """Larger ones are tried in turn, where nothing fits with those before them."""
    precision: Precision
    said: frozenset[str]
    """Names of the dimensions that the person fixed."""


def space_of(loaded: Loaded, profile: Profile, facts: ModelFacts) -> Space:
    """BadInputs with everything that cannot be planned."""
    config = loaded.config
    errors = [*parallel_errors(loaded, facts), *_adapter_errors(loaded, profile), *_tiling_errors(loaded, facts)]
    errors += [*nvme_errors(loaded), *quantised_base_errors(loaded, facts)]
    errors += [*sparse_attention.errors_of(loaded, facts), *position_errors(loaded, facts)]
    errors += [*_target_errors(loaded, facts), *_kernel_errors(loaded, profile)]
    errors += unsharded_in_16_bits(loaded, precision_of(loaded, profile))
    errors += optimizer_errors(loaded, facts, precision_of(loaded, profile))
    if errors:
        raise BadInputs(errors)
    return Space(
        zero_stages=_stages(loaded, profile),
        offload_optimizer=_offload_optimizer(config, profile),
        offload_params=_offload_params(config, profile),
        checkpointing=_checkpointing(config, profile),
        attention=_attention(config, profile, facts),
        cross_entropy=_cross_entropy(config),
        sequence_parallel=_sequence_parallel(loaded, profile, facts),
        precision=precision_of(loaded, profile),
        said=_said(loaded),
    )


AUTO_KEYS = (
    "zero_stage", "offload_optimizer", "offload_params", "gradient_checkpointing", "attention", "cross_entropy",
    "micro_batch_size",
)  # fmt: skip


def _said(loaded: Loaded) -> frozenset[str]:
    said = {key for key in AUTO_KEYS if getattr(loaded.config, key) != "auto"}
    return frozenset(said | {key for key in ("sequence_parallel_size",) if loaded.origin(key) != DEFAULT})


def _stages(loaded: Loaded, profile: Profile) -> tuple[int, ...]:
    """Stage 0 only in fp32: DeepSpeed sums 16-bit gradients of micro-batches in 16 bits there."""
    config = loaded.config
    if config.plan_as is not None and config.plan_as.sharding is not None:
        return (SHARDING[config.plan_as.sharding],)
    if config.zero_stage != "auto":
        return (config.zero_stage,)
    lowest = 0 if precision_of(loaded, profile) in ("fp32", "tf32") else 1
    # quantised weights cannot be sharded by elements, DoRA reads them whole, tensor parallel has cut them already
    highest = 2 if _quantised(config) or config.peft_use_dora or config.tensor_parallel_size > 1 else 3
    able = stages_of(config, precision_of(loaded, profile))
    return tuple(stage for stage in range(lowest, highest + 1) if stage in able) or tuple(sorted(able))


def _quantised(config: Config) -> bool:
    return config.load_in_4bit or config.load_in_8bit


def _offload_optimizer(config: Config, profile: Profile) -> tuple[Offload, ...]:
    if config.offload_optimizer != "auto":
        return (config.offload_optimizer,)
    stays = config.optimizer in ON_THE_CARD or config.master_weights == "bf16"
    if profile.is_cpu or stays or config.plan_as is not None:
        return ("none",)
    return ("none", "cpu")


def _offload_params(config: Config, profile: Profile) -> tuple[Offload, ...]:
    if config.offload_params != "auto":
        return (config.offload_params,)
    return ("none",) if profile.is_cpu or config.plan_as is not None else ("none", "cpu")


def _checkpointing(config: Config, profile: Profile) -> tuple[Checkpointing, ...]:
    """On a CPU there is nowhere to offload to. A tiled MLP and flex_attention have no outputs to keep (`_recomputation`
    in config/rules.py)."""
    if config.gradient_checkpointing != "auto":
        return (config.gradient_checkpointing,)
    keeps_nothing = config.tiled_mlp or config.attention == "flex" or config.attention_pattern is not None
    unable = {"offload"} if profile.is_cpu else set()
    unable |= {"selective"} if keeps_nothing else set()
    return tuple(way for way in CHECKPOINTING if way not in unable and can_launch("gradient_checkpointing", way))


def _cross_entropy(config: Config) -> tuple[CrossEntropy, ...]:
    """Other frameworks make whole logits unless something else is said."""
    if config.cross_entropy != "auto":
        return (config.cross_entropy,)
    if config.plan_as is not None:
        return ("eager",)
    return tuple(way for way in CROSS_ENTROPY if can_launch("cross_entropy", way))


def _attention(config: Config, profile: Profile, facts: ModelFacts) -> tuple[str, ...]:
    """Back ends whose kernels run: FlashAttention in 16 bits, its second generation from Ampere on, its third on
    Hopper; torch's sdpa anywhere. Some models have their own, which cannot be exchanged."""
    if config.attention != "auto":
        return (config.attention,)
    if facts.family in OWN_ATTENTION and config.plan_as is None:
        return ("sdpa" if facts.family in OWN_SDPA else "eager",)
    if sparse_attention.look_back(config) is not None:
        return (sparse_attention.back_end(config, profile),)
    capability = (0, 0) if _is_fp32(config) else profile.gpu.compute_capability or (0, 0)
    return tuple(
        name for name in ATTENTION if capability >= LEAST_CAPABILITY.get(name, (0, 0)) and can_launch("attention", name)
    )


def _sequence_parallel(loaded: Loaded, profile: Profile, facts: ModelFacts) -> tuple[int, ...]:
    """What the file says; where it says nothing, 1, and then the ranks of a node that could share a row of tokens."""
    config = loaded.config
    said = loaded.origin("sequence_parallel_size") != DEFAULT
    if said or config.plan_as is not None or config.tensor_parallel_size > 1 or profile.is_cpu:
        return (config.sequence_parallel_size,)
    sizes = [
        size for size in divisors(profile.gpus_per_node) if size == 1 or can_launch("sequence_parallel_size", size)
    ]
    return tuple(size for size in sizes if not parallel_errors(_with_sequence_parallel(loaded, size), facts))


def _with_sequence_parallel(loaded: Loaded, size: int) -> Loaded:
    return replace(loaded, config=loaded.config.model_copy(update={"sequence_parallel_size": size}))


def _is_fp32(config: Config) -> bool:
    return config.bf16 is False and config.fp16 is False


def precision_of(loaded: Loaded, profile: Profile) -> Precision:
    """bf16 where the card has it, else fp16; fp32 on a CPU. What was said explicitly is obeyed or refused."""
    config = loaded.config
    if config.bf16 is True:
        if not profile.is_cpu and not profile.gpu.has_bf16:
            raise _at(loaded, "bf16", f"{profile.gpu.title} has no bf16", True, "set bf16: auto or fp16: true")
        return "bf16"
    if config.fp16 is True:
        if profile.is_cpu:
            raise _at(loaded, "fp16", "DeepSpeed refuses fp16 on a CPU", True, "set bf16: true, or leave fp16 out")
        return "fp16"
    if profile.is_cpu or _is_fp32(config):
        return "tf32" if config.tf32 is True and not profile.is_cpu else "fp32"
    if config.bf16 == "auto" or config.fp16 == "auto":
        return "bf16" if profile.gpu.has_bf16 else "fp16"
    return "fp32"


# --- contradictions -----------------------------------------------------------------------------------------------


def _target_errors(loaded: Loaded, facts: ModelFacts) -> list[BadInput]:
    """Names of adapted layers that this model has not, with the nearest it has."""
    asked = loaded.config.lora_target_modules
    names = adaptable_names(loaded.config, facts)
    unknown = [one for one in ([asked] if isinstance(asked, str) else asked or []) if one not in {*names, "all-linear"}]
    if loaded.config.adapter is None or not unknown:
        return []
    near = difflib.get_close_matches(unknown[0], names, n=1)
    fix = f"did you mean {near[0]}?" if near else "lora_target_linear: true adapts every linear layer"
    message = f"no linear layer of {facts.name} has this name"
    return [_at(loaded, "lora_target_modules", message, unknown[0], fix, ", ".join(sorted(names)))]


def _kernel_errors(loaded: Loaded, profile: Profile) -> list[BadInput]:
    """A back end that this machine's cards cannot run; whether it is installed is seen where it runs."""
    config, wanted = loaded.config, loaded.config.attention
    capability = profile.gpu.compute_capability
    lacks = profile.is_cpu or (capability is not None and capability < LEAST_CAPABILITY.get(wanted, (0, 0)))
    if wanted not in LEAST_CAPABILITY or config.plan_as is not None or not lacks:
        return []
    major, minor = LEAST_CAPABILITY[wanted]
    message = f"{wanted} needs a CUDA GPU of compute capability {major}.{minor}"
    return [_at(loaded, "attention", message, wanted, "set attention: auto")]


NO_TOKEN_WISE_MLP = frozenset({"opt", "bloom", "mpt"})
"""Families whose block has no MLP module that takes and gives hidden states only."""


def _tiling_errors(loaded: Loaded, facts: ModelFacts) -> list[BadInput]:
    if not loaded.config.tiled_mlp or not (facts.experts or facts.family in NO_TOKEN_WISE_MLP):
        return []
    why = "has experts" if facts.experts else "has no module of its own for the MLP"
    message = f"the MLP of {facts.name} cannot be tiled: {facts.family} {why}"
    return [_at(loaded, "tiled_mlp", message, True, "set tiled_mlp: false")]


def _adapter_errors(loaded: Loaded, profile: Profile) -> list[BadInput]:
    config = loaded.config
    errors = []
    if _quantised(config) and config.zero_stage == 3:
        message = f"QLoRA's {4 if config.load_in_4bit else 8}-bit weights cannot be sharded by ZeRO stage 3"
        errors.append(_at(loaded, "zero_stage", message, 3, "set zero_stage: 2, or adapter: lora", "0, 1, 2, auto"))
    if config.adapter is not None and config.peft_use_dora and config.zero_stage == 3 and config.plan_as is None:
        message = "DoRA takes the length of whole rows of each matrix, and ZeRO stage 3 gives each rank parts of them"
        fix = "set zero_stage: 2, or peft_use_dora: false"
        errors.append(_at(loaded, "zero_stage", message, 3, fix, "0, 1, 2, auto"))
    if config.cross_entropy in ("fused", "compiled") and profile.is_cpu and config.plan_as is None:
        message = f"{config.cross_entropy} is for CUDA: its kernels are Triton's"
        fix = "set cross_entropy: auto"
        errors.append(_at(loaded, "cross_entropy", message, config.cross_entropy, fix, "auto, chunked, eager"))
    stage = config.zero_stage
    if config.offload_params in ("cpu", "nvme") and stage not in ("auto", 3):
        message = f"parameters are offloaded only at ZeRO stage 3, not at stage {stage}"
        errors.append(_at(loaded, "offload_params", message, config.offload_params, "set zero_stage: 3"))
    if config.offload_optimizer in ("cpu", "nvme") and stage == 0:
        message = "the optimizer is offloaded only at ZeRO stages 1 to 3"
        errors.append(_at(loaded, "offload_optimizer", message, config.offload_optimizer, "set zero_stage: 1, 2 or 3"))
    return errors


def _at(
    loaded: Loaded, key: str, message: str, value: object, fix: str | None = None, allowed: str | None = None
) -> BadInput:
    origin = loaded.origin(key)
    return BadInput(message, file=origin.file, line=origin.line, key=key, value=value, fix=fix, allowed=allowed)
