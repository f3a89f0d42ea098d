"""Weights, gradients and optimizer states of one rank, and the buffers of the way they are sharded. In bytes.

DeepSpeed's rules are read from its source (0.19.8, `runtime/zero/stage_1_and_2.py`, `stage3.py`, `bf16_optimizer.py`,
`fp16/unfused_optimizer.py`), FSDP2's from torch (`torch/distributed/fsdp/_fully_shard`).
"""

from __future__ import annotations

from functools import cached_property

from dtrain.planner.parameter_shares import (
    embedding_share,
    factored_share,
    hidden_share,
    small_parameters,
    vector_share,
)
from dtrain.planner.setup import DTYPE_BYTES, NF4_DOUBLE_QUANT_BYTES, Setup

SUB_GROUP_ELEMENTS = 1_000_000_000
"""DeepSpeed's `sub_group_size`: stage 3 steps that many parameters at a time."""


class States:
    """Bytes of one rank, worked out once per setup."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.facts = setup.facts
        self.trained = setup.trained_parameters * setup.tensor_share
        # whole modules beside adapters keep the base model's type (peft's cast_adapter_dtype takes adapters only)
        self.in_base_type = 0.0 if setup.is_deepspeed else setup.saved_parameters * setup.tensor_share
        self.ranks = setup.shard_ranks

    # --- weights --------------------------------------------------------------------------------------------------

    @cached_property
    def weights(self) -> float:
        """Resident weights: whole, or a shard with the parameters too small to shard."""
        setup = self.setup
        if setup.offload_params != "none":
            return self._persistent
        whole = self._trained_weights + self._frozen_weights
        return whole / self.ranks + self._persistent if setup.shards_weights else whole

    @property
    def _trained_weights(self) -> float:
        width = DTYPE_BYTES[self.setup.dtypes.weights]
        return self._sized(width) + self.setup.idle_adapter_parameters * self.setup.tensor_share * width

    def _sized(self, width: float) -> float:
        """All that is trained at so many bytes, but no more than the base type's where it is held in that."""
        base = min(width, DTYPE_BYTES[self.setup.dtypes.compute])
        return (self.trained - self.in_base_type) * width + self.in_base_type * base

    @property
    def _moment_share(self) -> float:
        """Of moments and their copies in the weights' type, what is left where a part is held in the base type."""
        whole = self.trained * DTYPE_BYTES[self.setup.dtypes.weights]
        return self._sized(DTYPE_BYTES[self.setup.dtypes.weights]) / whole if whole else 1.0

    @cached_property
    def _frozen_weights(self) -> float:
        """Frozen linears in their own type; when they are quantised, embeddings, norms and the head are not."""
        setup = self.setup
        if setup.adapter is None:
            return 0.0
        dtype = setup.dtypes.frozen
        if dtype not in ("nf4", "int8"):
            return setup.frozen_parameters * DTYPE_BYTES[dtype] * setup.tensor_share
        quantised = self._quantised_parameters
        size = NF4_DOUBLE_QUANT_BYTES if dtype == "nf4" and setup.double_quant else DTYPE_BYTES[dtype]
        kept = DTYPE_BYTES[setup.dtypes.compute]
        return (quantised * size + (setup.frozen_parameters - quantised) * kept) * setup.tensor_share

    @cached_property
    def _quantised_parameters(self) -> int:
        blocks = sum(
            layers * one.count * one.inputs * one.outputs
            for layer, layers in self.facts.layers
            for one in layer.linears
        )
        return blocks + (self.facts.head_parameters if self.setup.quantised_head else 0)

    @property
    def _persistent(self) -> float:
        """Stage 3 keeps small parameters (norms, biases) whole on every rank."""
        if self.setup.sharding != "zero3" or self.ranks == 1:
            return 0.0
        return small_parameters(self.facts) * DTYPE_BYTES[self.setup.dtypes.compute]

    # --- gathered weights -----------------------------------------------------------------------------------------

    @cached_property
    def gathered(self) -> float:
        """Whole weights that are alive beside the shards while a block computes."""
        setup = self.setup
        if not setup.shards_weights:
            return self._dequantised
        width = DTYPE_BYTES[setup.dtypes.compute]
        if setup.sharding == "fsdp2":
            cast = setup.dtypes.weights != setup.dtypes.compute or setup.dtypes.frozen != setup.dtypes.compute
            return width * self._fsdp_gathered_elements if self.ranks > 1 or cast else 0.0
        if self.ranks == 1 and setup.offload_params == "none":
            return 0.0
        return width * min(self.whole_elements, setup.buckets.max_live + setup.buckets.prefetch)

    @property
    def whole_elements(self) -> float:
        """Parameters of the model on this rank's tensor-parallel slice, trained or not."""
        return self.trained + self.setup.frozen_parameters * self.setup.tensor_share

    @property
    def _fsdp_gathered_elements(self) -> float:
        """The root (embedding, head, last norm) stays gathered; of the blocks, this one, the next, and its gather."""
        if not self.setup.reshard_after_forward:
            return self.whole_elements
        return self.root_elements + (3 if self.ranks > 1 else 2) * self.largest_block

    @cached_property
    def root_elements(self) -> float:
        facts = self.facts
        root = facts.embedding_parameters + facts.head_parameters + facts.final_parameters
        return root / self.setup.vocabulary_ways

    @cached_property
    def largest_block(self) -> float:
        return max((layer.parameters for layer, _ in self.facts.layers), default=0) / self.setup.tensor_parallel_size

    @property
    def trained_block(self) -> float:
        """Trained parameters of the largest block."""
        if self.setup.adapter is None:
            return self.largest_block
        layers = max(1, self.facts.layer_count)
        return self.setup.adapter_parameters / layers / self.setup.tensor_parallel_size

    @property
    def _dequantised(self) -> float:
        """bitsandbytes turns one 4-bit matrix at a time back into 16 bits."""
        if self.setup.adapter is None or self.setup.dtypes.frozen not in ("nf4", "int8"):
            return 0.0
        largest = max((one.inputs * one.outputs for layer, _ in self.facts.layers for one in layer.linears), default=0)
        if self.setup.quantised_head:
            largest = max(largest, self.facts.vocab_size * self.facts.hidden_size)
        return largest * DTYPE_BYTES[self.setup.dtypes.compute] / self.setup.tensor_parallel_size

    def autocast_copies(self, forward: bool) -> float:
        """16-bit copies of fp32 weights: made once a forward and kept until it ends (aten/src/ATen/autocast_mode.cpp,
        cached_cast), and kept by every matmul for its backward; a recomputed block makes its own again."""
        setup = self.setup
        if setup.sharding != "ddp" or setup.adapter is not None or setup.dtypes.weights == setup.dtypes.compute:
            return 0.0
        recomputed = setup.checkpointing != "none" and not forward
        cast = self.root_elements + self.largest_block if recomputed else self.trained
        return min(cast, self.trained) * DTYPE_BYTES[setup.dtypes.compute]

    # --- optimizer ------------------------------------------------------------------------------------------------

    @cached_property
    def optimizer(self) -> float:
        """Masters and moments on the card."""
        return 0.0 if self.setup.offload_optimizer != "none" else self.optimizer_anywhere

    @cached_property
    def optimizer_anywhere(self) -> float:
        setup = self.setup
        shard = self.trained / (self.ranks if setup.shards_optimizer else 1)
        master = DTYPE_BYTES[setup.dtypes.master] if setup.dtypes.master else 0.0
        moments = 0.0 if setup.optimizer.paged else self.moment_bytes
        return shard * (master + moments * self._moment_share)

    @cached_property
    def moment_bytes(self) -> float:
        """Bytes per trained parameter. Unsharded quantised states fall back to fp32 for small tensors."""
        spec = self.setup.optimizer
        if spec.hidden_only:
            return spec.state_bytes * hidden_share(self.facts) + spec.vector_state_bytes * (
                1 - hidden_share(self.facts)
            )
        if (
            self.setup.is_deepspeed and self.setup.shards_optimizer
        ):  # one flat tensor: nothing is small, nothing factored
            return spec.state_bytes
        if spec.factored:
            return 4 * factored_share(self.facts)
        vectors = self._wide_share
        return spec.state_bytes * (1 - vectors) + spec.vector_state_bytes * vectors

    @property
    def _wide_share(self) -> float:
        """Of quantised moments, those held in fp32: of vectors, and of embeddings under transformers' Trainer, which
        exempts them from bitsandbytes' 8 bits (trainer.py, register_module_override)."""
        setup = self.setup
        if setup.adapter is not None:
            return 0.0
        bitsandbytes = setup.optimizer.name.endswith("_8bit") and setup.optimizer.name != "adamw_torch_8bit"
        exempt = embedding_share(self.facts) if setup.others_loss and bitsandbytes else 0.0
        return vector_share(self.facts) + exempt

    @cached_property
    def step_extra(self) -> float:
        """Alive only inside the optimizer's step."""
        setup = self.setup
        if setup.offload_optimizer != "none" or setup.optimizer.in_backward:
            return 0.0
        if setup.optimizer.hidden_only and setup.is_deepspeed:
            return self._muon_step + self._unsummed
        if setup.sharding == "zero0" and setup.is_deepspeed:
            # fp16/unfused_optimizer.py: every gradient is cast to fp32 before the first parameter is stepped
            return 4 * self.trained if setup.dtypes.master else 0.0
        shard = self.trained / (self.ranks if setup.shards_optimizer else 1)
        if setup.sharding == "zero3":
            group = min(SUB_GROUP_ELEMENTS, shard)
            return group * (4 + setup.optimizer.flat_step_bytes)  # stage3.py flattens the sub-group's gradients
        if setup.is_deepspeed:
            return shard * setup.optimizer.flat_step_bytes + self._unsummed
        return shard * setup.optimizer.step_bytes * self._moment_share

    @property
    def _unsummed(self) -> float:
        """BF16_Optimizer (stage 1) clears the gradients that backward left only after the step."""
        kept = self.setup.sharding == "zero1" and self.setup.dtypes.accumulation is not None
        return self.trained * DTYPE_BYTES[self.setup.dtypes.gradient] if kept else 0.0

    @property
    def _muon_step(self) -> float:
        """AdamW's temporaries, four of a moment's size (original_muon.py, adam_update): of the flat rest at stage 1, of
        the largest tensor at stage 0, where 16-bit gradients are cast to fp32 all at once."""
        if self.setup.shards_optimizer:
            return 16 * (1 - hidden_share(self.facts)) * self.trained / self.ranks
        largest = 16 * max(self.facts.embedding_parameters, self.facts.head_parameters)
        return largest + (4 * self.trained if self.setup.dtypes.master else 0.0)

    # --- gradients ------------------------------------------------------------------------------------------------

    @cached_property
    def gradients(self) -> float:
        """When backward has ended."""
        setup = self.setup
        width = DTYPE_BYTES[setup.dtypes.gradient]
        summed = DTYPE_BYTES[setup.dtypes.accumulation] if setup.dtypes.accumulation else width
        away = setup.is_deepspeed or setup.offload_params != "none"
        if setup.offload_optimizer != "none" and away:
            # they leave for the host as they are reduced (stage3.py: the flat buffer lies on the CPU; FSDP's offload)
            return 0.0
        if setup.optimizer.in_backward:
            return self.trained_block * width
        if setup.sharding == "zero0" or setup.sharding == "ddp":
            return self._sized(width)
        if setup.sharding == "zero1":
            return self.trained * summed
        if setup.sharding == "fsdp2":
            return self._sized(DTYPE_BYTES[setup.dtypes.weights]) / self.ranks
        return self.trained / self.ranks * summed

    @property
    def gradients_before(self) -> float:
        """While forward runs: sums of earlier micro-batches, and what is always there."""
        setup = self.setup
        always = setup.sharding == "zero3" or (setup.sharding == "zero1" and setup.dtypes.accumulation is not None)
        summed = self.gradients if setup.accumulation > 1 or always else 0.0
        return summed + self._left_over

    @property
    def _left_over(self) -> float:
        """In fp32 DeepSpeed holds the last step's flat gradient shard until the next backward (live bytes, 0.19.8)."""
        setup = self.setup
        flat = setup.sharding in ("zero1", "zero2", "zero3") and self._summed_as_they_come
        if not flat or setup.offload_optimizer != "none":
            return 0.0
        return self.trained / self.ranks * DTYPE_BYTES[setup.dtypes.gradient]

    @property
    def _summed_as_they_come(self) -> bool:
        """In fp32, no copy is made between backward and the step. With bf16 masters one is (live bytes, 0.19.8)."""
        return self.setup.dtypes.accumulation is None and self.setup.dtypes.master != "bf16"

    def _fsdp_reduce(self, unit: float) -> float:
        """A unit's gradient as computed, and the reduce-scatter's input."""
        return unit * (DTYPE_BYTES[self.setup.dtypes.compute] + DTYPE_BYTES[self.setup.dtypes.reduce])

    @property
    def trained_root(self) -> float:
        """Trained parameters of FSDP's root (embedding, head, last norm), one unit that is reduced at the very end."""
        return self.root_elements if self.setup.adapter is None else 0.0

    @property
    def head_gradients(self) -> float:
        """Of the output matrix, alive while every block's activations still are.

        Where gradients are sharded it has left by then, unless the matrix is tied: autograd holds its first part
        until the embedding's arrives, at the very end. FSDP's root waits for the end in any case.
        """
        setup = self.setup
        if setup.adapter is not None:
            return 0.0
        matrix = self.facts.vocab_size * self.facts.hidden_size / setup.vocabulary_ways
        if setup.sharding == "fsdp2":
            return matrix * DTYPE_BYTES[setup.dtypes.compute]
        if setup.shards_gradients and not self.facts.tied_embeddings:
            return 0.0
        size = matrix * DTYPE_BYTES[setup.dtypes.gradient]
        return size if setup.shards_gradients else min(self.gradients, size)

    @property
    def save_extra(self) -> float:
        """Gathered while saving: stage 3 and FSDP2 bring one tensor at a time together."""
        if not self.setup.shards_weights or self.ranks == 1:
            return 0.0
        largest = max(self.facts.vocab_size * self.facts.hidden_size, 1) / self.setup.vocabulary_ways
        return largest * DTYPE_BYTES[self.setup.dtypes.compute]

    @cached_property
    def _bucket(self) -> float:
        return min(self.setup.buckets.reduce, self.trained) * DTYPE_BYTES[self.setup.dtypes.reduce]

    def _buckets_of(self, elements: float) -> float:
        """Two where they overlap with backward, no larger than so many elements."""
        size = min(self.setup.buckets.reduce, elements) * DTYPE_BYTES[self.setup.dtypes.reduce]
        return size * (2 if self.setup.buckets.overlap else 1)

    @property
    def standing_buffers(self) -> float:
        """Buckets that outlive backward: stage 3's own, and stage 1's old ones, which its gradients are views of."""
        if self.setup.sharding == "zero3":
            return self._bucket
        views = self.setup.sharding == "zero1" and self._summed_as_they_come
        return self._buckets_of(self.trained) if views else 0.0

    @cached_property
    def reduce_buffers(self) -> float:
        """Buckets in which gradients travel, alive while backward runs."""
        setup = self.setup
        if setup.sharding == "ddp":  # buckets hold every gradient a second time
            return self.trained * DTYPE_BYTES[setup.dtypes.reduce] if setup.ranks > 1 else 0.0
        if setup.sharding == "fsdp2":
            return self._fsdp_reduce(self.trained_block)
        if setup.sharding == "zero0":
            return 0.0
        if setup.sharding == "zero3":
            full = setup.buckets.reduce < self.trained  # only a full bucket is reduced before backward has ended
            return self._bucket * (2 if full else 1)  # and the reduce-scatter's flat copy of it
        if setup.sharding == "zero1" and setup.dtypes.accumulation is not None:
            return self.trained_block * DTYPE_BYTES[setup.dtypes.gradient]
        # made no larger than the whole model (train/engine.py), whatever tensor parallel leaves here
        return self._buckets_of(setup.trained_parameters) + self.standing_buffers

    @property
    def reduce_beside_loss(self) -> float:
        """While the loss is differentiated: buffers that exist before the first block's gradients do."""
        return 0.0 if self.setup.sharding in ("fsdp2", "ddp") else self.reduce_buffers

    @property
    def reduce_after_backward(self) -> float:
        """When backward has ended: stage 0 makes a flat copy of a bucket at a time, stage 3 empties its last bucket,
        FSDP reduces its root."""
        if self.setup.sharding == "fsdp2":
            alone = self.root_elements * DTYPE_BYTES[self.setup.dtypes.compute] if self.gathered else 0.0
            return self._fsdp_reduce(self.trained_root) + alone
        if self.setup.sharding == "zero3":
            return 2 * self._bucket + self.gathered
        if self.setup.sharding == "zero1" and self.setup.dtypes.accumulation is not None and self.ranks > 1:
            # the flat sum is cast whole to be sent; what backward left goes after the step only
            return self.trained * DTYPE_BYTES[self.setup.dtypes.reduce] + self._unsummed
        if self.setup.sharding == "zero2" and self.setup.dtypes.accumulation is not None:
            # stage_1_and_2.py, _add_to_grad_partition_buffer: a bucket's own part is cast before it is added to the sum
            own = min(self.setup.buckets.reduce, self.trained / self.ranks)
            return self.reduce_buffers + own * DTYPE_BYTES[self.setup.dtypes.accumulation]
        return self._bucket if self.setup.sharding == "zero0" and self.setup.ranks > 1 else 0.0
