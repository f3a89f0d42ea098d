"""Attention: what it keeps for backward and what its backward needs, in bytes per token."""

from __future__ import annotations

import math

from dtrain.models.facts import Layer, ModelFacts
from dtrain.planner.activation_key import ActivationKey, parts_of
from dtrain.planner.norm_bytes import norm_saved

WITHOUT_ROTARY = frozenset({"gpt2", "opt", "bloom", "mpt", "gpt_bigcode"})
PARTLY_ROTARY = frozenset({"phi", "stablelm", "gpt_neox", "gptj"})
"""Families whose defaults rotate only a part of each head; other configs say `partial_rotary_factor`."""
OWN_ATTENTION = frozenset({"bloom"})
"""Families that compute scores themselves, whatever back end is asked for."""
LATENT_ATTENTION = frozenset({"deepseek_v2", "deepseek_v3"})
"""Keys and values of different widths: torch's flash kernel on a CPU has no such shape."""


def attention_saved(key: ActivationKey, layer: Layer) -> float:
    """Of one block: its input for the projections, q, k, v, the output, and what the softmax needs."""
    facts, tp = key.facts, key.tensor_parallel
    query, key_value = facts.heads * facts.head_dim / tp, facts.kv_heads * facts.head_dim / tp
    parts = parts_of(facts, layer)
    kept = facts.hidden_size * key.keeps_input(*parts.attention) / key.gathered_ways
    kept += key.width * (query + 2 * attended_keys(key)) + attention_core(key) / tp
    if facts.qk_norm != "none":
        kept += (query + key_value) * norm_saved(key)
    if len(parts.attention) == 1 and facts.family not in WITHOUT_ROTARY and key.sequence_parallel == 1:
        kept += key.width * (query + key_value)  # v is a view into the fused product, which stays whole
    copies = int(key.sequence_parallel > 1 or _documents_apart(key) or partly_rotary(facts))
    copies += int(not key.trained and key.frozen_keeps and key.quantised)
    kept += copies * key.width * query  # the output again: from the all-to-all, joined, or laid out for o_proj
    return kept + _band(key, layer)


def attended_keys(key: ActivationKey) -> float:
    """Elements per token of the keys (or values) that attention sees. With more sequence-parallel ranks than heads,
    each head is repeated until every rank has one (deepspeed ulysses_sp.py, dtrain/train/sequence_parallel.py)."""
    return math.lcm(key.facts.kv_heads, key.sequence_parallel) * key.facts.head_dim / key.tensor_parallel


def _documents_apart(key: ActivationKey) -> bool:
    """dtrain's sdpa goes document by document and joins the outputs."""
    return key.packed and key.attention == "sdpa"


def partly_rotary(facts: ModelFacts) -> bool:
    """Heads that are rotated in part are put together again in another layout, so the output is copied for o_proj."""
    share = facts.config.get("partial_rotary_factor", facts.config.get("rotary_pct"))
    return share < 1 if isinstance(share, int | float) else facts.family in PARTLY_ROTARY


def rotary_tables(facts: ModelFacts) -> int:
    """Pairs of cosines and sines that every block shares; Gemma 3 has one for narrow and one for wide blocks."""
    return 0 if facts.family in WITHOUT_ROTARY else 2 if facts.family == "gemma3_text" else 1


def attention_core(key: ActivationKey) -> float:
    """The output and what is kept to differentiate the softmax: a log-sum-exp a head, or whole score matrices."""
    facts = key.facts
    query = facts.heads * facts.head_dim
    output = key.width * query
    if falls_to_math(key):  # all in fp32, keys and values expanded
        return output + 3 * 4 * query + 4 * facts.heads * key.window
    scores = score_bytes(key)
    if not scores:
        return output + 4 * facts.heads
    groups = facts.heads // max(1, facts.kv_heads)
    repeated = 2 * key.width * facts.kv_heads * facts.head_dim * (groups - 1)
    return output + repeated + scores * facts.heads * key.window


def falls_to_math(key: ActivationKey) -> bool:
    """Falcon's single key head beside many query heads: torch's fused kernels do not take it, its formula does."""
    facts = key.facts
    single = facts.family == "falcon" and facts.kv_heads == 1 and facts.heads > 1
    return single and key.transformers_code and key.attention == "sdpa"


def _band(key: ActivationKey, layer: Layer) -> float:
    """A narrow window is a mask for torch's sdpa, kept in the compute type: window² per block, whatever the heads."""
    if key.segment is not None and key.segment < key.window:
        return _segments(key, key.segment)
    narrow = layer.attention_window is not None and layer.attention_window < key.window
    masked = narrow and key.attention in ("sdpa", "varlen") and not score_bytes(key)
    return key.width * key.window * key.sequence_parallel if masked else 0.0  # each rank has the whole row's


def _segments(key: ActivationKey, length: int) -> float:
    """Each segment's mask over two segments, and a second copy of keys and values behind those of the one before."""
    return key.width * (2 * length + 2 * key.facts.kv_heads * key.facts.head_dim / key.tensor_parallel)


def score_bytes(key: ActivationKey) -> float:
    """Bytes kept per score where whole score matrices exist; 0 where a kernel never makes them."""
    if key.attention in ("sdpa", "varlen") and softcapped(key.facts):
        return 4 + 2 * key.width  # tanh, the fp32 softmax and its 16-bit copy
    if key.attention in ("sdpa", "varlen") and key.facts.family == "gpt_oss":  # its sinks, one more score a head
        return 4 + key.width
    if _written_out(key):
        return 4 + key.width
    if key.on_cpu and attention_dropout(key.facts) > 0:  # torch's CPU flash kernel has no dropout: its formula runs
        return 4 + 4 * key.width
    return 2 * key.width if key.on_cpu and key.facts.family in LATENT_ATTENTION else 0.0


def softcapped(facts: ModelFacts) -> bool:
    """Gemma 2's cap, for which only FlashAttention has a kernel."""
    default = 50.0 if facts.family == "gemma2" else None
    return bool(facts.config.get("attn_logit_softcapping", default))


def attention_dropout(facts: ModelFacts) -> float:
    default = 0.1 if facts.family == "gpt2" else 0.0
    return float(facts.config.get("attn_pdrop", facts.config.get("attention_dropout", default)) or 0.0)


def attention_working(key: ActivationKey) -> float:
    """Gradients of q, k, v and the output; on a GPU, flash kernels sum dq in fp32 and dk, dv per query head."""
    facts, tp = key.facts, key.tensor_parallel
    query, key_value = facts.heads * facts.head_dim / tp, attended_keys(key)
    gradients = key.width * (facts.hidden_size + 2 * query + 2 * key_value)
    if not key.on_cpu:
        gradients += 4 * query + (2 * key.width * query if key_value < query else 0.0)
    if key.sequence_parallel > 1:  # an all-to-all's chunks as sent, as received and laid out; one tensor at a time
        gradients += 3 * key.width * query
        if key.on_cpu and key.sequence_parallel > facts.kv_heads:
            # of repeated keys and values, while they are added up; on a GPU the kernel's fp32 sums are gone by then
            gradients += 3 * key.width * key_value
    return gradients + scores_working(key)


def scores_working(key: ActivationKey) -> float:
    """Gradients of score matrices, where attention makes them."""
    if falls_to_math(key):
        return 2 * 4 * key.facts.heads * key.window / key.tensor_parallel
    if not score_bytes(key):
        return 0.0
    wide = 3 if _written_out(key) else 2  # the softmax's gradient goes in and out in fp32, its 16-bit result is freed
    return wide * key.width * key.facts.heads * key.window / key.tensor_parallel


def mask_kept(key: ActivationKey) -> float:
    """Written-out attention adds one mask to the scores of all blocks and heads: a row of it for each token."""
    return key.width * key.window if _written_out(key) else 0.0


def _written_out(key: ActivationKey) -> bool:
    return key.attention == "eager" or key.facts.family in OWN_ATTENTION
