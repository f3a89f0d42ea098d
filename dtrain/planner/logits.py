"""The head and the loss: what the logits of a micro-batch cost, by the way the cross-entropy is computed. In bytes."""

from __future__ import annotations

from dataclasses import dataclass

from dtrain.planner.setup import DTYPE_BYTES, Setup

COMPILED_BYTES = 6.0
"""Per logit when torch.compile fuses the cast into the softmax: the logits, their gradient, and two more bytes
(measured 5.8 to 6.3; planning_facts.md)."""

OTHERS_COPY = 1.5
"""Bytes per logit beside those that every eager loss holds in backward: some keep the fp32 logits or their shifted copy
as well, others do not. Of other frameworks 14 to 18 bytes in all were measured (planning_facts.md; 14.7 ALST, 15
torchtune and torchtitan, 17.8 prime-rl)."""


@dataclass(frozen=True)
class LossBytes:
    forward: float
    """Largest moment of the loss in the forward pass."""
    backward: float
    """Largest moment of its backward, with every activation still alive."""
    evaluation: float
    """Largest moment without gradients."""


def loss_bytes(setup: Setup) -> LossBytes:
    """Per rank; sequence- and tensor-parallel ranks hold their part."""
    chunked = _chunked_outputs if setup.others_loss else _chunked
    compiled = _compiled if setup.others_loss else _chunked  # ours compiles what is done to a chunk
    ways = {"eager": _eager, "compiled": compiled, "fused": _fused, "chunked": chunked}
    return ways[setup.cross_entropy](setup)


def _vocabulary(setup: Setup) -> float:
    return setup.facts.vocab_size / setup.vocabulary_ways


def head_is_trained(setup: Setup) -> bool:
    return setup.adapter is None or bool({"lm_head", "embed_tokens"} & setup.adapter.modules_to_save)


def _eager(setup: Setup) -> LossBytes:
    """Log-softmax and two gradients of it, alive together in backward; elsewhere the logits as well. Ours lets them go
    as soon as their fp32 copy is made (dtrain/train/loss.py; held to the trace): 12 bytes, not 14 to 18."""
    width, loss = DTYPE_BYTES[setup.dtypes.compute], DTYPE_BYTES[setup.dtypes.loss]
    copy = 0.0 if loss == width else loss
    if setup.others_loss:
        logits, forward, backward = setup.micro_batch_tokens, width + copy + loss, width + 3 * loss + OTHERS_COPY
    else:
        shaped = loss if shapes_logits(setup) else 0.0
        logits, forward, backward = setup.trained_positions, 2 * loss + shaped, 3 * loss + shaped
    return LossBytes(
        forward=logits * _vocabulary(setup) * forward,
        backward=logits * _vocabulary(setup) * backward,
        evaluation=evaluation_positions(setup) * _vocabulary(setup) * forward,
    )


def _compiled(setup: Setup) -> LossBytes:
    logits = setup.micro_batch_tokens * _vocabulary(setup)
    return LossBytes(
        forward=logits * COMPILED_BYTES,
        backward=logits * COMPILED_BYTES,
        evaluation=evaluation_positions(setup) * _vocabulary(setup) * COMPILED_BYTES,
    )


def _fused(setup: Setup) -> LossBytes:
    """Liger: chunks of about hidden/vocabulary of the positions, gradients of input and weight made in forward."""
    width = DTYPE_BYTES[setup.dtypes.compute]
    hidden, vocabulary = setup.facts.hidden_size, _vocabulary(setup)
    positions = setup.micro_batch_tokens
    chunk = max(1.0, positions * hidden / vocabulary)
    gradients = positions * hidden * width + (vocabulary * hidden * width if head_is_trained(setup) else 0)
    logits = min(positions, chunk) * vocabulary * 2 * width
    return LossBytes(gradients + logits, gradients, min(evaluation_positions(setup), chunk) * vocabulary * width)


def _chunked(setup: Setup) -> LossBytes:
    """dtrain/train/loss.py: one chunk of logits and its fp32 copy, which softmax and gradient overwrite; the weight's
    gradient in fp32."""
    width = DTYPE_BYTES[setup.dtypes.compute]
    hidden, vocabulary = setup.facts.hidden_size, _vocabulary(setup)
    positions = setup.trained_positions
    chunk_rows = min(positions, setup.cross_entropy_chunk_tokens)
    chunk = chunk_rows * vocabulary
    matrix = vocabulary * hidden if head_is_trained(setup) else 0.0
    kept = positions * hidden * width + 4 * matrix
    logits = chunk * ((width + 4 if width < 4 else 4) + (4 if shapes_logits(setup) else 0))
    product = (chunk + matrix) * width if width < 4 else chunk * width
    return LossBytes(
        forward=kept + positions * hidden * width + max(logits, product),
        backward=kept + (width * matrix if width < 4 else 0),
        evaluation=min(evaluation_positions(setup), setup.cross_entropy_chunk_tokens) * logits / max(1.0, chunk_rows),
    )


def _chunked_outputs(setup: Setup) -> LossBytes:
    """Others cut the head's finished product into chunks (torchtune's CEWithChunkedOutputLoss, litgpt's
    chunked_cross_entropy): whole logits, and beside them each chunk's log-softmax in fp32, in whose place its gradient
    comes. Compiled, the softmax is made again, and a gradient takes the place of its logits. The head's gradient is
    summed over the chunks' products."""
    width, loss = DTYPE_BYTES[setup.dtypes.compute], DTYPE_BYTES[setup.dtypes.loss]
    logits = setup.micro_batch_tokens * _vocabulary(setup)
    chunk = min(setup.micro_batch_tokens, setup.cross_entropy_chunk_tokens) * _vocabulary(setup)
    held = logits * (width if setup.compiled else width + loss) + chunk * (width if setup.compiled else 2 * loss)
    matrix = _vocabulary(setup) * setup.facts.hidden_size if head_is_trained(setup) else 0.0
    return LossBytes(
        forward=held,
        backward=held + 2 * matrix * width,
        evaluation=evaluation_positions(setup) * _vocabulary(setup) * width + chunk * 2 * loss,
    )


def shapes_logits(setup: Setup) -> bool:
    """Models that cap or scale their logits need one more copy of them."""
    config = setup.facts.config
    default = 30.0 if setup.facts.family == "gemma2" else None
    return bool(
        config.get("final_logit_softcapping", default) or config.get("logit_scale") or config.get("logits_scaling")
    )


def evaluation_positions(setup: Setup) -> int:
    """Positions of an evaluation batch that reach the head."""
    rows = setup.eval_micro_batch_size or 0
    return rows * -(-setup.sequence_len // setup.sequence_parallel_size)
