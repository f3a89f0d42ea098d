"""Published runs (tests/measured/published_*.json) as Setups: every row read the way its framework really worked.

A row is converted from its stated fields only. What a framework does that its row does not say (the loss kernel, the
shape of its checkpointing, the optimizer's kernels) is one entry of FRAMEWORKS with where that is known from, for all
rows of the framework alike. Rows that lack the window or the micro-batch are not converted and are counted.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dtrain.hardware.build import Profile
from dtrain.hardware.gpus import GPUS, Gpu
from dtrain.models.facts import Layer, Linear, ModelFacts
from dtrain.planner.optimizers import OPTIMIZERS, OptimizerSpec, optimizer_spec
from dtrain.planner.setup import AdapterSpec, Dtypes, Setup, Sharding

MEASURED = Path(__file__).resolve().parent.parent / "tests" / "measured"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Framework:
    """What a framework does that its rows do not say."""

    name: str
    attention: str
    """The kernel behind the row's word `flash`, where the row leaves it open."""
    cross_entropy: Literal["eager", "chunked", "compiled", "fused"]
    optimizer: str
    fused_kernels: bool = False
    """Its norms and activations are single kernels without torch.compile."""
    fp32_norms: bool = True
    dropout: bool = False
    """Of its adapters."""
    loss_chunk_tokens: int = 1024
    source: str = ""


FRAMEWORKS: Mapping[str, Framework] = {
    "mosaicml/llm-foundry": Framework(
        "llm-foundry", "triton", "compiled", "adamw_torch", fp32_norms=False,
        source="scripts/train/benchmarking/submit_benchmarks.py: --attn_impl triton, low_precision_layernorm; "
        "MPT's loss_fn fused_crossentropy (flash-attn's kernel on whole logits); Composer's DecoupledAdamW, unfused",
    ),
    "PrimeIntellect-ai/prime-rl": Framework(
        "prime-rl", "flash_attention_2", "eager", "adamw_torch",
        source="rows: sft with whole logits, rl with a head fused in chunks of tokens",
    ),
    "foundation-model-stack/fms-fsdp": Framework(
        "fms-fsdp", "sdpa", "compiled", "adamw_torch", source="README: torch.compile, sdpa, torch.optim.AdamW",
    ),
    "pytorch/ao": Framework(
        "torchtitan", "sdpa", "compiled", "adamw_torch_fused",
        source="torchtitan llama3_8b.toml: compile on, fused AdamW",
    ),
    "karpathy/llm.c": Framework(
        "llm.c", "flash_attention_2", "fused", "adamw_torch_fused", fused_kernels=True, fp32_norms=False,
        source="train_gpt2.cu: cuDNN's flash attention, one kernel per layer norm, gelu and classifier",
    ),
    "Lightning-AI/litgpt": Framework(
        "litgpt", "sdpa", "chunked", "adamw_torch", dropout=True, loss_chunk_tokens=128,
        source="litgpt/utils.py: chunked_cross_entropy in chunks of 128 positions; lora_dropout 0.05",
    ),
    "snowflakedb/ArcticTraining": Framework(
        "ArcticTraining", "flash_attention_2", "eager", "adamw_torch", source="rows: Liger or whole logits",
    ),
    "deepspeedai/DeepSpeed": Framework("DeepSpeed", "sdpa", "eager", "adamw_torch"),
    "huggingface/accelerate": Framework("accelerate", "sdpa", "eager", "adamw_torch"),
    "hpcaitech/ColossalAI": Framework("ColossalAI", "flash_attention_2", "eager", "adamw_torch_fused"),
}  # fmt: skip

GPU_NAMES = {
    "H100-80GB": "h100", "A100-80GB": "a100-80gb", "A100-40GB": "a100-40gb", "H200": "h200", "B200": "b200",
    "RTX A6000": "a6000", "A10G": "a10g",
}  # fmt: skip

STATED_NETWORK_GBIT = {"A100-40GB": 1600.0, "A100-80GB": 1600.0, "H100-80GB": 3200.0, "H200": 3200.0, "B200": 3200.0}
"""Per node where a row states none: llm-foundry's table heads say 1600 Gbps RoCE for A100; 8 × 400 Gb/s is what
H100 and newer nodes have (shared/truth/hardware.json, _inter_node)."""


POWER_TO_CLOCK = 0.4
"""A power-bound card's clock over its power limit: power grows as clock × voltage², voltage nearly as the clock."""


class NotStated(Exception):
    """A row lacks a field without which no estimate means anything."""


def published(kind: Literal["throughput", "memory"]) -> list[Row]:
    rows: list[Row] = json.loads((MEASURED / f"published_{kind}.json").read_text(encoding="utf-8"))
    return rows


def source_of(row: Row) -> str:
    return FRAMEWORKS[row["source"]["repo"]].name


def setup_of(row: Row) -> Setup:
    """The run of a row. Raises NotStated for one that lacks the window, the micro-batch or a known card."""
    for field in ("seq_len", "micro_batch"):
        if row.get(field) is None:
            raise NotStated(f"{row['id']}: no {field}")
    framework = FRAMEWORKS[row["source"]["repo"]]
    facts = _as_held(framework, facts_of(row))
    parallel = row["parallelism"]
    offload = str(row.get("offload"))
    return Setup(
        facts=facts,
        profile=profile_of(row),
        sequence_len=row["seq_len"],
        micro_batch_size=row["micro_batch"],
        accumulation=accumulation_of(row),
        sharding=sharding_of(row),
        replicate_size=1,
        reshard_after_forward=parallel.get("zero_equiv") in (None, 3),  # FSDP2's default, on one card as well
        dtypes=dtypes_of(row, framework),
        double_quant="dq" in str((row.get("peft") or {}).get("quant")),
        optimizer=optimizer_of(row, framework),
        adapter=adapter_of(row, facts),
        checkpointing=checkpointing_of(row),
        attention=attention_of(row, framework),
        cross_entropy=cross_entropy_of(row, framework),
        cross_entropy_chunk_tokens=framework.loss_chunk_tokens,
        others_loss=True,
        sequence_parallel_size=parallel.get("ulysses_sp") or 1,
        tensor_parallel_size=parallel.get("tp") or 1,
        tiled_mlp=bool(row.get("tiled_mlp")),
        compiled=bool(row.get("compile")),
        fp8_linears="fp8" in str(row["precision"].get("name") or row["precision"].get("compute")),
        fused_kernels=framework.fused_kernels or bool(row.get("liger")),
        packed=False,
        transformers_code=False,
        frozen_keeps_inputs=framework.name == "litgpt",  # fused q, k, v with padded updates; bitsandbytes 0.41
        quantised_head=framework.name == "litgpt",  # Fabric's bitsandbytes plugin takes every linear, and skips none
        fp32_routing=framework.name in ("prime-rl", "torchtitan"),  # torchtitan's MoE scales experts' results in fp32
        offload_optimizer="cpu" if offload == "cpu" or "optimizer cpu" in offload else "none",
        offload_params="cpu" if "param cpu" in offload else "none",
        expandable_segments=framework.name == "prime-rl" or "expandable_segments:True" in str(row.get("inferred")),
    )


# --- the machine --------------------------------------------------------------------------------------------------


def gpu_of(row: Row) -> Gpu:
    name = row["gpu"]
    if name == "H100-96GB-HBM2e":  # torchtitan's test cluster: 500 W, slower memory (its docs; truth/hardware.json)
        card = GPUS["h100"]
        slower = (500 / 700) ** POWER_TO_CLOCK * (card.measured_tflops_bf16 or 0)
        return replace(card, name="h100-96gb-hbm2e", memory_gib=95.0, memory_gb_per_s=2400, measured_tflops_bf16=slower)
    if name not in GPU_NAMES:
        raise NotStated(f"{row['id']}: the card is not stated")
    return GPUS[GPU_NAMES[name]]


def profile_of(row: Row) -> Profile:
    gpu, gpus = gpu_of(row), row["n_gpus"]
    per_node = min(gpus, row.get("gpus_per_node") or 8)
    said = str(row.get("interconnect") or "")
    network = STATED_NETWORK_GBIT.get(row["gpu"], 100.0)
    if said.endswith(" Gbps"):
        network = float(said.removesuffix(" Gbps"))
    return Profile(
        name=f"{gpu.name}x{per_node}x{gpus // per_node}",
        gpu=gpu,
        gpus_per_node=per_node,
        nodes=gpus // per_node,
        host_memory_gib=2000.0,
        network_gbit_per_s=network,
    )


# --- the model ----------------------------------------------------------------------------------------------------


def _as_held(framework: Framework, facts: ModelFacts) -> ModelFacts:
    """litgpt copies a tied head (scripts/convert_hf_checkpoint.py) and ties it in no finetuning."""
    if framework.name != "litgpt" or not facts.tied_embeddings:
        return facts
    return replace(facts, tied_embeddings=False, head_parameters=facts.vocab_size * facts.hidden_size)


def facts_of(row: Row) -> ModelFacts:
    """Facts from the row's `arch`, under the module names transformers gives them."""
    arch = row["arch"]
    hidden, heads, kv, dim = arch["hidden"], arch["heads"], arch["kv_heads"], arch["head_dim"]
    gated = arch["mlp"] in ("swiglu", "geglu")
    bias = bool(arch.get("bias"))
    q_width, kv_width = heads * dim, kv * dim
    linears = [
        Linear("q_proj", hidden, q_width, bias or bool(arch.get("qkv_bias"))),
        Linear("k_proj", hidden, kv_width, bias or bool(arch.get("qkv_bias"))),
        Linear("v_proj", hidden, kv_width, bias or bool(arch.get("qkv_bias"))),
        Linear("o_proj", q_width, hidden, bias),
    ]
    inner = arch.get("moe_intermediate") or arch["intermediate"]
    experts, top = arch.get("experts") or 1, arch.get("top_k") or 1
    if experts > 1:
        linears.append(Linear("gate", hidden, experts))
    names = ("gate_proj", "up_proj", "down_proj") if gated else ("fc1", "fc2")
    shapes = [(hidden, inner)] * (len(names) - 1) + [(inner, hidden)]
    linears += [Linear(name, a, b, bias, experts, float(top)) for name, (a, b) in zip(names, shapes, strict=True)]
    layer_norm = "layer" in arch["norm"]
    norms = 1 if arch.get("parallel_residual") else 2
    per_norm = hidden * (2 if layer_norm and bias else 1)
    layer = Layer(
        linears=tuple(linears),
        norm_parameters=norms * per_norm + (2 * dim if arch.get("qk_norm") else 0),
        norms=norms,
    )
    positions = row["seq_len"] * hidden if arch["pos"] == "learned" and row.get("seq_len") else 0
    embedding = arch["vocab"] * hidden
    return ModelFacts(
        name=row["model"],
        family={"MPT": "mpt"}.get(row["model"].split("-")[0], "llama"),
        hidden_size=hidden,
        heads=heads,
        kv_heads=kv,
        head_dim=dim,
        intermediate_size=arch["intermediate"],
        vocab_size=arch["vocab"],
        max_positions=None,
        layers=((layer, arch["layers"]),),
        tied_embeddings=bool(arch["tied"]),
        gated_mlp=gated,
        norm="layer" if layer_norm else "rms",
        experts=experts if experts > 1 else 0,
        experts_per_token=top if experts > 1 else 0,
        learned_position_parameters=positions,
        embedding_parameters=embedding + positions,
        head_parameters=0 if arch["tied"] else embedding,
        final_parameters=per_norm,
        activation="silu" if arch["mlp"] == "swiglu" else "gelu",
        qk_norm="head" if arch.get("qk_norm") else "none",
        parallel_residual=bool(arch.get("parallel_residual")),
        source="the row's arch",
    )


# --- the way it ran -----------------------------------------------------------------------------------------------


def accumulation_of(row: Row) -> int:
    if row.get("grad_accum"):
        return int(row["grad_accum"])
    if row.get("global_batch_tokens"):
        per_pass = int(row["micro_batch"]) * int(row["seq_len"]) * int(row["n_gpus"])
        return max(1, round(int(row["global_batch_tokens"]) / per_pass))
    return 1


def sharding_of(row: Row) -> Sharding:
    words = str(row["parallelism"].get("framework_sharding") or "")
    if "FSDP" in words:
        return "fsdp2"
    stage = row["parallelism"].get("zero_equiv") or 0
    if row["n_gpus"] == 1 and stage == 0:
        return "ddp"  # one card, nothing sharded, the framework's own loop
    return f"zero{stage}"  # type: ignore[return-value]


def dtypes_of(row: Row, framework: Framework) -> Dtypes:
    precision = row["precision"]
    params, grads = str(precision.get("params", "fp32 sharded")), str(precision.get("grads", "fp32"))
    pure = params.startswith("bf16 (no master)")
    deepspeed = sharding_of(row).startswith("zero")
    masters = deepspeed and not pure
    reduce_bf16 = precision.get("fsdp_mp") == "PURE" or grads.startswith("bf16")
    quantised = params.startswith("bnb.nf4")
    held_fp32 = not (pure or masters or quantised)
    return Dtypes(
        compute="bf16",
        weights="fp32" if held_fp32 else "bf16",
        master="fp32" if masters else None,
        gradient="fp32" if held_fp32 else "bf16",
        accumulation="fp32" if masters and not grads.startswith("bf16") else None,
        reduce="bf16" if reduce_bf16 or not held_fp32 else "fp32",
        frozen=frozen_dtype(row, held_fp32),
        norm="fp32" if framework.fp32_norms else "bf16",
    )


def frozen_dtype(row: Row, held_fp32: bool) -> Literal["fp32", "bf16", "nf4"]:
    if "nf4" in str((row.get("peft") or {}).get("quant")):
        return "nf4"
    return "fp32" if held_fp32 and row.get("peft") else "bf16"


def optimizer_of(row: Row, framework: Framework) -> OptimizerSpec:
    states = str(row["precision"].get("opt_states", "fp32"))
    name = framework.optimizer
    if "fused" in str(row["precision"].get("optimizer")):
        name = "adamw_torch_fused"
    if states.startswith("bf16"):
        return optimizer_spec(name, "bf16")
    if states.startswith("8-bit"):
        return OPTIMIZERS["adamw_torch_8bit"]
    if states.startswith("4-bit"):
        return OPTIMIZERS["adamw_torch_4bit"]
    return optimizer_spec(name)


TARGETS = {
    "q": ("q_proj",), "k": ("k_proj",), "v": ("v_proj",), "o": ("o_proj",),
    "mlp": ("gate_proj", "up_proj", "down_proj", "fc1", "fc2"), "lm_head": (),
}  # fmt: skip


def adapter_of(row: Row, facts: ModelFacts) -> AdapterSpec | None:
    """Targets as stated; where none are (prime-rl), every linear of the blocks, its own default."""
    peft = row.get("peft")
    if not peft:
        return None
    names = {linear.name for layer, _ in facts.layers for linear in layer.linears}
    words = peft.get("targets")
    targets = {name for word in words for name in TARGETS[word]} & names if words else names - {"gate"}
    return AdapterSpec(
        kind="qlora" if "nf4" in str(peft.get("quant")) else "lora",
        rank=peft["rank"],
        targets=frozenset(targets),
        dropout=FRAMEWORKS[row["source"]["repo"]].dropout,
        copies=4 if "MAX_LORAS=4" in str(row.get("inferred")) else 1,
    )


def checkpointing_of(row: Row) -> Literal["none", "full", "selective", "offload"]:
    words = str(row.get("activation_checkpointing") or "none")
    if words.startswith("full"):
        return "offload" if "offload" in words or "activation checkpoints cpu" in str(row.get("offload")) else "full"
    return "selective" if words.startswith("selective") else "none"


def attention_of(row: Row, framework: Framework) -> str:
    words = str(row.get("attention") or "")
    return words if words in ("flash_attention_2", "flash_attention_3") else framework.attention


def cross_entropy_of(row: Row, framework: Framework) -> Literal["eager", "chunked", "compiled", "fused"]:
    if row.get("liger"):
        return "fused"
    if framework.name == "prime-rl" and "-rl-" in row["id"]:
        return "fused"
    return framework.cross_entropy


def median(values: list[float]) -> float:
    return statistics.median(values) if values else math.nan


def quantile(values: list[float], share: float) -> float:
    """The value that `share` of all values do not exceed, by nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
