"""One layout of one run, complete: everything an estimate of memory or time needs, for our way and for others'.

`layout.setup_from` fills it for what dtrain really runs (or, with `plan_as`, for what another framework would). The
estimators read nothing else: no config, no YAML, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from dtrain.hardware.profiles import Profile
from dtrain.models.facts import ModelFacts
from dtrain.planner.optimizers import OptimizerSpec, optimizer_spec

Sharding = Literal["zero0", "zero1", "zero2", "zero3", "fsdp2", "ddp"]
Dtype = Literal["fp32", "bf16", "fp16", "fp8", "int8", "nf4"]
Offload = Literal["none", "cpu", "nvme"]

DTYPE_BYTES: Mapping[str, float] = MappingProxyType(
    {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int8": 1, "nf4": 0.5 + 4 / 64}
)
"""Bytes of one element. nf4: one fp32 absmax per block of 64 (bitsandbytes functional.py quantize_4bit)."""

NF4_DOUBLE_QUANT_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""The absmax itself in 8 bits, with one fp32 scale per 256 of them (QLoRA, arXiv 2305.14314, section 3)."""

CHUNK_TOKENS = 1024
"""Positions whose logits exist at once in our chunked cross-entropy when `cross_entropy_chunks` is auto."""


@dataclass(frozen=True)
class Dtypes:
    """Who holds numbers in which type. The defaults are DeepSpeed's bf16 with fp32 masters and accumulation."""

    compute: Dtype = "bf16"
    """What the matmuls run in."""
    weights: Dtype = "bf16"
    """Trained weights as the model holds them between steps (fp32 with FSDP2's mixed precision)."""
    master: Dtype | None = "fp32"
    """The optimizer's own copy of the weights; None where `weights` is what is stepped."""
    gradient: Dtype = "bf16"
    """As backward leaves them."""
    accumulation: Dtype | None = "fp32"
    """Where gradients are summed over micro-batches; None: in `gradient` itself."""
    reduce: Dtype = "bf16"
    """What collectives of gradients carry."""
    frozen: Dtype = "bf16"
    """Weights that are not trained."""
    norm: Dtype = "fp32"
    """What norms compute in; Hugging Face's upcast to fp32 and keep that copy for backward."""
    loss: Dtype = "fp32"
    """What the softmax of the loss runs in."""


@dataclass(frozen=True)
class ZeroBuckets:
    """Sizes of DeepSpeed's buffers, in elements, as dtrain writes them into the engine's config.

    DeepSpeed's own default is 5e8 for reduce and allgather: 2 GB of buffers, where 100 MB messages already saturate a
    link (transformers' "auto" is hidden², 1.7e7 for 4096).
    """

    reduce: int = 100_000_000
    allgather: int = 200_000_000
    prefetch: int = 50_000_000
    persistence: int = 100_000
    """Parameters smaller than this are never sharded at stage 3."""
    max_live: int = 1_000_000_000
    overlap: bool = True
    """Reduce while computing: a second reduce bucket."""


@dataclass(frozen=True)
class AdapterSpec:
    """Low-rank matrices beside frozen linears."""

    kind: Literal["lora", "qlora"]
    rank: int
    targets: frozenset[str]
    """Names of linears (`q_proj`, …) that get an adapter."""
    dora: bool = False
    dropout: bool = False
    modules_to_save: frozenset[str] = frozenset()
    """Whole modules trained beside the adapters: `embed_tokens`, `lm_head`."""
    copies: int = 1
    """Adapters held at once, of which one trains (prime-rl serves several runs)."""


@dataclass(frozen=True)
class Setup:
    """One layout. Sizes are per rank unless the name says otherwise."""

    facts: ModelFacts
    profile: Profile
    sequence_len: int
    micro_batch_size: int
    """Sequences (packed rows when packing) per forward pass of one data-parallel rank."""
    accumulation: int

    sharding: Sharding
    replicate_size: int = 1
    """Copies of the sharded model (HSDP, ZeRO++ hpZ); the shard is over ranks / replicate_size."""
    reshard_after_forward: bool = True

    dtypes: Dtypes = field(default_factory=Dtypes)
    double_quant: bool = False
    tf32: bool = False

    optimizer: OptimizerSpec = field(default_factory=lambda: optimizer_spec("adamw_torch"))
    adapter: AdapterSpec | None = None
    frozen_modules: frozenset[str] = frozenset()

    checkpointing: Literal["none", "full", "selective", "offload"] = "none"
    attention: str = "sdpa"
    segment_memory: int | None = None
    """Tokens of a segment that sees itself and the one before; None: no segments."""
    cross_entropy: Literal["eager", "chunked", "compiled", "fused"] = "chunked"
    cross_entropy_chunk_tokens: int = CHUNK_TOKENS
    """Positions per chunk, where the loss is chunked or fused."""
    others_loss: bool = False
    """As other frameworks compute it: a chunked loss gets whole logits and cuts them, where ours makes one chunk's at a
    time; an eager one may keep the logits' fp32 copy."""
    sequence_parallel_size: int = 1
    tensor_parallel_size: int = 1
    autotp: bool = False
    """Tensor parallel as dtrain has it from DeepSpeed's AutoTP: norms, embedding and head stay whole on each rank, and
    matrices with the same input sum its gradient one by one. Elsewhere (Megatron, torchtitan) all but norms is cut."""
    sequence_sharded: bool = False
    """Tensor-parallel ranks hold parts of the sequence between blocks: what heads or width do not cut, it does."""
    tiled_mlp: bool = False
    compiled: bool = False
    """torch.compile of the blocks: fused norms, activations and rope."""
    fp8_linears: bool = False
    """The blocks' matmuls run in fp8; weights and activations are held in the compute type (torchao)."""
    fused_kernels: bool = False
    """Liger-like norms, rope and gated activations that keep only their inputs."""
    transformers_code: bool = True
    """Blocks run as transformers writes them: `gelu_new` in Python, Falcon's single key head as it is."""
    packed: bool = False
    """Several documents behind each other in one row of tokens, as dtrain feeds every micro-batch."""
    frozen_keeps_inputs: bool = False
    """Frozen matmuls keep their input (twice when quantised), as measured of adapters outside peft: fused q, k, v with
    padded updates, bitsandbytes before 0.42."""
    quantised_head: bool = False
    """The head is quantised with the blocks (litgpt); transformers and torchtune leave it in 16 bits."""
    fp32_routing: bool = False
    """Experts' results are scaled by their routing weights in fp32 (torchtitan's MoE)."""

    offload_optimizer: Offload = "none"
    offload_params: Offload = "none"
    buckets: ZeroBuckets = ZeroBuckets()
    expandable_segments: bool = False

    trained_share: float | None = None
    """Share of positions that carry loss, where known; the memory estimate takes 1 without it."""
    eval_micro_batch_size: int | None = None
    """None: no evaluation."""
    gradient_clipping: bool = True

    @property
    def ranks(self) -> int:
        return self.profile.gpus

    @property
    def data_parallel_size(self) -> int:
        """Ranks that read different sequences."""
        return max(1, self.ranks // (self.sequence_parallel_size * self.tensor_parallel_size))

    @property
    def vocabulary_ways(self) -> int:
        """Parts that embedding and head are cut into."""
        return 1 if self.autotp else self.tensor_parallel_size

    @cached_property
    def tensor_share(self) -> float:
        """Of a model's parameters, what tensor parallel leaves on one rank."""
        if not self.autotp or self.tensor_parallel_size == 1:
            return 1 / self.tensor_parallel_size
        linears = sum(one.parameters * layers for layer, layers in self.facts.layers for one in layer.linears)
        return 1 - linears * (1 - 1 / self.tensor_parallel_size) / self.facts.parameters

    @property
    def stream_ways(self) -> int:
        """Parts that the residual stream of a rank's tokens is cut into."""
        return self.tensor_parallel_size if self.sequence_sharded else 1

    @property
    def shard_ranks(self) -> int:
        """Ranks over which states are split (sequence-parallel ranks shard too); 1 where nothing is."""
        if self.sharding in ("zero0", "ddp"):
            return 1
        return max(1, self.ranks // (self.tensor_parallel_size * self.replicate_size))

    @property
    def shards_optimizer(self) -> bool:
        return self.sharding in ("zero1", "zero2", "zero3", "fsdp2")

    @property
    def shards_gradients(self) -> bool:
        return self.sharding in ("zero2", "zero3", "fsdp2")

    @property
    def shards_weights(self) -> bool:
        return self.sharding in ("zero3", "fsdp2")

    @property
    def is_deepspeed(self) -> bool:
        return self.sharding.startswith("zero")

    @property
    def global_batch_size(self) -> int:
        """Sequences per optimizer step over all ranks."""
        return self.micro_batch_size * self.accumulation * self.data_parallel_size

    @property
    def micro_batch_tokens(self) -> int:
        """Positions one rank holds in a forward pass (its part of the sequence under sequence parallel)."""
        return self.micro_batch_size * -(-self.sequence_len // self.sequence_parallel_size)

    @property
    def step_tokens(self) -> int:
        """Slots per optimizer step over all ranks."""
        return self.global_batch_size * self.sequence_len

    @property
    def trained_positions(self) -> int:
        """Positions of a micro-batch that reach the head; all of them where the share is not known."""
        share = 1.0 if self.trained_share is None else self.trained_share
        return max(1, round(self.micro_batch_tokens * share))

    @property
    def adapter_parameters(self) -> int:
        """Elements of the low-rank matrices (and DoRA magnitudes)."""
        if self.adapter is None:
            return 0
        rank, dora = self.adapter.rank, self.adapter.dora
        head = rank * (self.facts.hidden_size + self.facts.vocab_size) if "lm_head" in self.adapter.targets else 0
        return head + sum(
            layers * linear.count * (rank * (linear.inputs + linear.outputs) + (linear.outputs if dora else 0))
            for layer, layers in self.facts.layers
            for linear in layer.linears
            if linear.name in self.adapter.targets
        )

    @property
    def trained_parameters(self) -> int:
        """What the optimizer steps, whole model."""
        if self.adapter is None:
            return self.facts.parameters
        return self.adapter_parameters + self.saved_parameters

    @property
    def saved_parameters(self) -> int:
        """Of whole modules trained beside the adapters."""
        saved = self.adapter.modules_to_save if self.adapter is not None else frozenset()
        head = self.facts.head_parameters or self.facts.vocab_size * self.facts.hidden_size
        return (self.facts.embedding_parameters if "embed_tokens" in saved else 0) + (head if "lm_head" in saved else 0)

    @property
    def frozen_parameters(self) -> int:
        """Of the base model; 0 where all of it is trained."""
        return 0 if self.adapter is None else self.facts.parameters

    @property
    def idle_adapter_parameters(self) -> int:
        return 0 if self.adapter is None else (self.adapter.copies - 1) * self.adapter_parameters
