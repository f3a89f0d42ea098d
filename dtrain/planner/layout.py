"""From a config and a choice to a Setup: what dtrain would run, or with `plan_as` what another framework would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dtrain.config.schema import Config, PlanAs
from dtrain.hardware.profiles import Profile
from dtrain.models.facts import ModelFacts
from dtrain.planner.choice import Choice
from dtrain.planner.optimizers import OptimizerSpec, optimizer_spec
from dtrain.planner.parallel import OWN_ATTENTION
from dtrain.planner.setup import CHUNK_TOKENS, AdapterSpec, Dtype, Dtypes, Setup, Sharding, ZeroBuckets
from dtrain.planner.sparse_attention import in_sight


def setup_from(config: Config, facts: ModelFacts, profile: Profile, choice: Choice) -> Setup:
    """The layout that `choice` means on this machine: dtrain's own way, or another framework's under `plan_as`."""
    other = config.plan_as or PlanAs()
    compute: Dtype = "fp32" if choice.precision == "tf32" else choice.precision
    sharding: Sharding = other.sharding or f"zero{choice.zero_stage}"  # type: ignore[assignment]
    positions = choice.micro_batch_size * -(-choice.sequence_len // choice.sequence_parallel_size)
    return Setup(
        facts=in_sight(config, facts),
        profile=profile,
        sequence_len=choice.sequence_len,
        micro_batch_size=choice.micro_batch_size,
        accumulation=choice.gradient_accumulation_steps,
        sharding=sharding,
        replicate_size=other.replicate_size,
        reshard_after_forward=other.reshard_after_forward,
        dtypes=dtypes_of(config, other, sharding, compute),
        double_quant=config.bnb_4bit_use_double_quant,
        tf32=choice.precision == "tf32",
        optimizer=optimizer_of(config, choice, other, profile),
        adapter=adapter_spec(config, facts),
        checkpointing=choice.gradient_checkpointing,
        attention=choice.attention,
        segment_memory=config.segment_memory,
        cross_entropy=choice.cross_entropy,
        cross_entropy_chunk_tokens=chunk_tokens(config, positions),
        others_loss=config.plan_as is not None,
        sequence_parallel_size=choice.sequence_parallel_size,
        tensor_parallel_size=config.tensor_parallel_size,
        autotp=config.plan_as is None,
        sequence_sharded=_sequence_sharded(other, sharding),
        tiled_mlp=config.tiled_mlp,
        compiled=config.torch_compile,
        fp8_linears=config.fp8,
        fused_kernels=_has_liger_kernels(config),
        transformers_code=config.plan_as is None,
        packed=_one_flat_row(config, facts, choice),
        fp32_routing=config.plan_as is not None,
        offload_optimizer=choice.offload_optimizer,
        offload_params=choice.offload_params,
        buckets=zero_buckets(config, facts),
        eval_micro_batch_size=eval_micro_batch(config, choice),
        gradient_clipping=config.max_grad_norm > 0,
    )


def _one_flat_row(config: Config, facts: ModelFacts, choice: Choice) -> bool:
    """dtrain puts documents behind each other, but where a model's own attention cannot keep them apart."""
    several = config.sample_packing or choice.micro_batch_size > 1
    return several and config.plan_as is None and facts.family not in OWN_ATTENTION


def _sequence_sharded(other: PlanAs, sharding: Sharding) -> bool:
    """torchtitan's tensor parallel always is (its parallelize_llama); Megatron's on demand."""
    return sharding == "fsdp2" if other.sequence_sharded is None else other.sequence_sharded


def _has_liger_kernels(config: Config) -> bool:
    """Elsewhere a fused loss is Liger's, which replaces norms, rope and the MLP's activation as well, unless the model
    is compiled."""
    return config.plan_as is not None and config.cross_entropy == "fused" and not config.torch_compile


def optimizer_of(config: Config, choice: Choice, other: PlanAs, profile: Profile) -> OptimizerSpec:
    """On a CPU, bitsandbytes' paged states lie in memory like others."""
    spec = optimizer_spec(choice.optimizer, other.optimizer_state_dtype, other.optimizer_in_backward)
    if config.master_weights == "bf16" and spec.as_masters:
        spec = spec.with_state_dtype(2)
    return replace(spec, paged=False) if profile.is_cpu else spec


def dtypes_of(config: Config, other: PlanAs, sharding: Sharding, compute: Dtype) -> Dtypes:
    """DeepSpeed: 16-bit weights, fp32 masters and fp32 accumulation, or both in bf16. FSDP2 and DDP: fp32 weights, cast
    to compute."""
    deepspeed = sharding.startswith("zero")
    masters = other.master_weights != "none" and compute != "fp32"
    low = config.master_weights == "bf16"
    gradient: Dtype = other.gradient_dtype or (compute if deepspeed or not masters else "fp32")
    return Dtypes(
        compute=compute,
        weights="fp32" if masters and not deepspeed else compute,
        master=("bf16" if low else "fp32") if masters and deepspeed else None,
        gradient=gradient,
        accumulation="fp32" if masters and deepspeed and other.gradient_dtype is None and not low else None,
        reduce=gradient,
        frozen=other.base_weights_dtype or _frozen_dtype(config, compute),
    )


def _frozen_dtype(config: Config, compute: Dtype) -> Dtype:
    if config.adapter == "qlora" or config.load_in_4bit:
        return "nf4"
    return "int8" if config.load_in_8bit else compute


def zero_buckets(config: Config, facts: ModelFacts) -> ZeroBuckets:
    """Ours, or what the person's DeepSpeed config says; its "auto" is transformers' rule (axolotl_keys.md 7.10)."""
    document = config.deepspeed if isinstance(config.deepspeed, dict) else {}
    zero = document.get("zero_optimization") or {}
    ours = ZeroBuckets()
    hidden = facts.hidden_size
    overlap = zero.get("overlap_comm")
    return ZeroBuckets(
        reduce=_elements(zero, "reduce_bucket_size", ours.reduce, hidden * hidden),
        allgather=_elements(zero, "allgather_bucket_size", ours.allgather, ours.allgather),
        prefetch=_elements(zero, "stage3_prefetch_bucket_size", ours.prefetch, int(0.9 * hidden * hidden)),
        persistence=_elements(zero, "stage3_param_persistence_threshold", ours.persistence, 10 * hidden),
        max_live=_elements(zero, "stage3_max_live_parameters", ours.max_live, ours.max_live),
        overlap=overlap if isinstance(overlap, bool) else ours.overlap,
    )


def _elements(zero: Mapping[str, Any], key: str, ours: int, automatic: int) -> int:
    value = zero.get(key)
    if value == "auto":
        return automatic
    return int(value) if isinstance(value, int | float) and value >= 0 else ours


def adapter_spec(config: Config, facts: ModelFacts) -> AdapterSpec | None:
    """Which linears get adapters; peft's defaults where the file names none are q and v (peft/utils/constants.py)."""
    if config.adapter is None:
        return None
    return AdapterSpec(
        kind=config.adapter,
        rank=config.lora_r,
        targets=adapter_targets(config, facts),
        dora=config.peft_use_dora,
        dropout=config.lora_dropout > 0,
        modules_to_save=frozenset(config.lora_modules_to_save or ()),
    )


def linear_names(facts: ModelFacts) -> frozenset[str]:
    return frozenset(linear.name for layer, _ in facts.layers for linear in layer.linears)


def adaptable_names(config: Config, facts: ModelFacts) -> frozenset[str]:
    """What adapters can be asked for. Our chunked loss takes the head's weight as it is, other frameworks call it."""
    return linear_names(facts) | ({"lm_head"} if config.plan_as is not None else frozenset())


def adapter_targets(config: Config, facts: ModelFacts) -> frozenset[str]:
    names = linear_names(facts)
    asked = config.lora_target_modules
    told = frozenset([asked] if isinstance(asked, str) else asked or ())
    if config.lora_target_linear or "all-linear" in told:
        return names
    if told:
        return told & adaptable_names(config, facts)
    common = frozenset({"q_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv"}) & names
    return common or names


def chunk_tokens(config: Config, positions: int) -> int:
    """Positions per chunk of the loss: `cross_entropy_chunks` equal parts, or the default size."""
    if isinstance(config.cross_entropy_chunks, int):
        return -(-positions // config.cross_entropy_chunks)
    return min(positions, CHUNK_TOKENS)


def eval_micro_batch(config: Config, choice: Choice) -> int | None:
    """Sequences per forward pass of an evaluation; None where nothing is held out."""
    if not config.test_datasets and not config.val_set_size:
        return None
    return config.eval_batch_size or choice.micro_batch_size
