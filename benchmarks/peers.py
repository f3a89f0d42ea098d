"""Other estimators' published formulas, in our own words, for the same Setup: GiB a GPU, or None."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dtrain.planner.setup import Setup
from dtrain.units import gib


def deepspeed_estimator(setup: Setup) -> float | None:
    """DeepSpeed's `estimate_zero*_model_states_mem_needs`: states only; stage 3 adds the largest layer in fp32."""
    if setup.adapter is not None:
        return None
    parameters, ranks = setup.facts.parameters, setup.shard_ranks
    if not setup.shards_weights:
        return gib(2 * parameters if setup.offload_optimizer != "none" else (4 + 16 / ranks) * parameters)
    largest = 4 * setup.facts.vocab_size * setup.facts.hidden_size
    if setup.offload_params != "none":
        return gib(largest)
    return gib(largest + (2 if setup.offload_optimizer != "none" else 18) * parameters / ranks)


def transformer_math(setup: Setup) -> float | None:
    """EleutherAI's Transformer Math 101: states by ZeRO stage, and Korthikanti's activations."""
    if setup.adapter is not None:
        return None
    parameters, ranks, facts = setup.facts.parameters, setup.shard_ranks, setup.facts
    weights = 2 * parameters / (ranks if setup.shards_weights else 1)
    gradients = 4 * parameters / (ranks if setup.shards_gradients else 1)
    optimizer = 12 * parameters / (ranks if setup.shards_optimizer else 1)
    tokens = setup.micro_batch_tokens
    per_token = 2 if setup.checkpointing in ("full", "offload") else 34
    activations = per_token * tokens * facts.hidden_size * facts.layer_count
    if setup.checkpointing == "none":
        activations += 5 * facts.heads * setup.sequence_len * tokens * facts.layer_count
    return gib(weights + gradients + optimizer + activations)


def megatron(setup: Setup) -> float | None:
    """Megatron-LM's `theoretical_memory_usage`: 18 or 6 + 12/ranks bytes a parameter, selective recomputation."""
    if setup.adapter is not None:
        return None
    facts, ranks, tokens = setup.facts, setup.shard_ranks, setup.micro_batch_tokens
    states = (18 if ranks == 1 else 6 + 12 / ranks) * facts.parameters
    layers = tokens * facts.hidden_size * (18 + 4 * facts.intermediate_size / facts.hidden_size) * facts.layer_count
    embedding = 8 * tokens + tokens * facts.hidden_size
    logits = 4 * tokens * facts.hidden_size * (1 + facts.vocab_size / facts.hidden_size)
    return gib(states + layers + embedding + logits)


PEERS: Mapping[str, Callable[[Setup], float | None]] = {
    "DeepSpeed estimator": deepspeed_estimator,
    "Transformer Math": transformer_math,
    "Megatron formula": megatron,
}
