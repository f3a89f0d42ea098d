"""The training loss: the head and the cross-entropy at trained positions only, in chunks.

Shapes: B rows, T tokens, H hidden size, V vocabulary, N trained positions of the micro-batch, C positions of a chunk.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.planner.setup import CHUNK_TOKENS
from dtrain.train.batch import Batch
from dtrain.train.fused_loss import fused_cross_entropy

ChunkLoss = Callable[..., tuple[Tensor, Tensor | None]]
"""`_cross_entropy`, as it is or compiled."""


class ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of `hidden @ weight.T + bias` against targets, one chunk of logits alive at a time.

    The gradients are computed in the forward pass, while a chunk's logits are there, and scaled by the incoming
    gradient in the backward pass, so any scale of the loss is exact. Logits are in the weight's dtype, the softmax in
    fp32, as transformers does it.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_N: Tensor, chunks: int,
        softcap: float | None, scale: float, chunk_loss: ChunkLoss,
    ) -> Tensor:  # fmt: skip
        wants_grad = any(ctx.needs_input_grad[:3])
        grad_hidden = torch.empty_like(hidden_NH) if ctx.needs_input_grad[0] else None
        # fp32: many chunks add up here, and bf16 would lose the small ones
        grad_weight = torch.zeros_like(weight_VH, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = (
            torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None and ctx.needs_input_grad[2] else None
        )
        total = torch.zeros((), dtype=torch.float32, device=hidden_NH.device)
        for span in _spans(len(targets_N), chunks):
            hidden_CH = hidden_NH[span]
            loss, grad_CV = chunk_loss(hidden_CH, weight_VH, bias_V, targets_N[span], softcap, scale, wants_grad)
            total += loss
            if grad_CV is None:
                continue
            if grad_hidden is not None:
                torch.mm(grad_CV, weight_VH, out=grad_hidden[span])
            if grad_weight is not None:
                _add_product(grad_weight, grad_CV, hidden_CH)
            if grad_bias is not None:
                grad_bias += grad_CV.float().sum(dim=0)
            del grad_CV  # before the next chunk's logits are there
        ctx.gradients = (grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (weight_VH.dtype, None if bias_V is None else bias_V.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.gradients
        ctx.gradients = None
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if hidden is None else hidden.mul_(grad_output.to(hidden.dtype)),
            None if weight is None else weight.mul_(grad_output).to(weight_dtype),
            None if bias is None else bias.mul_(grad_output).to(bias_dtype),
            None, None, None, None, None,
        )  # fmt: skip


def _spans(length: int, chunks: int) -> list[slice]:
    size = max(1, -(-length // max(1, chunks)))
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _shape_logits(logits: Tensor, softcap: float | None, scale: float) -> Tensor:
    """What some models do to their logits: multiply by a constant (Cohere, Granite), cap softly (Gemma 2)."""
    if scale != 1.0:
        logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _slope(shaped: Tensor, softcap: float | None, scale: float) -> Tensor | float:
    """The derivative of `_shape_logits`, by its result."""
    return scale if softcap is None else (1.0 - (shaped / softcap).square_()) * scale


def _cross_entropy(
    hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_C: Tensor, softcap: float | None,
    scale: float, wants_grad: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """A chunk's summed loss in fp32, and its gradient by the raw logits in their dtype.

    Softmax and gradient take the place of the fp32 logits: one buffer, and each pass over it is one less to wait for.
    """
    raw_CV = torch.nn.functional.linear(hidden_CH, weight_VH, bias_V)
    dtype = raw_CV.dtype
    logits_CV = _shape_logits(raw_CV.float(), softcap, scale)
    del raw_CV
    slope = _slope(logits_CV, softcap, scale) if wants_grad else 1.0
    logits_CV -= logits_CV.amax(dim=-1, keepdim=True)
    picked_C = logits_CV.gather(1, targets_C[:, None])[:, 0]
    sums_C = logits_CV.exp_().sum(dim=-1)
    loss = (sums_C.log() - picked_C).sum()
    if not wants_grad:
        return loss, None
    logits_CV /= sums_C[:, None]
    logits_CV[torch.arange(len(targets_C), device=logits_CV.device), targets_C] -= 1.0
    if softcap is not None or scale != 1.0:
        logits_CV *= slope
    return loss, logits_CV.to(dtype)


def _add_product(total_VH: Tensor, grad_CV: Tensor, hidden_CH: Tensor) -> None:
    """`total += grad.T @ hidden`, in place where the dtypes allow it."""
    if grad_CV.dtype == total_VH.dtype:
        total_VH.addmm_(grad_CV.t(), hidden_CH)
    else:
        total_VH += grad_CV.t() @ hidden_CH


class LossModel(nn.Module):
    """A causal language model whose forward pass is the summed loss of a micro-batch.

    `model` is transformers' `…ForCausalLM`. The body gives hidden states, the head runs here.
    """

    def __init__(self, model: Any, cross_entropy: str = "chunked", chunks: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.head = _Head(model, cross_entropy, chunks)
        # MPT and BLOOM have no positions but ALiBi's, counted from the start of a row; they are padded, never flat
        self._takes_positions = "position_ids" in inspect.signature(model.base_model.forward).parameters

    def forward(self, batch: Batch) -> Tensor:
        """The sum of cross-entropies over the batch's trained positions, a scalar in fp32, times `batch.weight`."""
        told = {"position_ids": batch.position_ids_BT, **batch.attention_arguments} if self._takes_positions else {}
        hidden_BTH = self.model.base_model(input_ids=batch.ids_BT, use_cache=False, **told).last_hidden_state
        hidden_NH = hidden_BTH.reshape(-1, hidden_BTH.shape[-1])[batch.positions_N]
        loss: Tensor = self.head(hidden_NH, batch.targets_N)
        return loss * batch.weight


class _Head(nn.Module):
    """The output matrix of a model, used without being owned: ZeRO-3 gathers it for this module's forward pass."""

    def __init__(self, model: Any, cross_entropy: str, chunks: int | None) -> None:
        super().__init__()
        linear = model.get_output_embeddings()
        self._linear = (linear,)  # a tuple, so that the weight is registered once, in the model
        self.kind = cross_entropy
        self.chunk_loss = torch.compile(_cross_entropy, dynamic=True) if cross_entropy == "compiled" else _cross_entropy
        self.chunks = chunks
        config = model.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )

    @property
    def linear(self) -> Any:
        """The output matrix; where peft trains a copy of it (`lora_modules_to_save`), that copy."""
        copies = getattr(self._linear[0], "modules_to_save", None)
        return self._linear[0] if copies is None else copies["default"]

    def forward(self, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
        weight, bias = self.linear.weight, getattr(self.linear, "bias", None)
        if self.kind == "fused":
            return fused_cross_entropy(hidden_NH, weight, bias, targets_N, self.softcap, self.scale)
        if self.kind == "eager":
            logits = _shape_logits(
                torch.nn.functional.linear(hidden_NH, weight, bias).float(), self.softcap, self.scale
            )
            return torch.nn.functional.cross_entropy(logits, targets_N, reduction="sum")
        chunks = self.chunks or -(-len(targets_N) // CHUNK_TOKENS)
        loss: Tensor = ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_NH, weight, bias, targets_N, chunks, self.softcap, self.scale, self.chunk_loss
        )
        return loss


def share_head_with_zero3(loss_model: LossModel) -> None:
    """Tell ZeRO-3 that the head's weight, owned by the model, is used in another module's forward pass."""
    import deepspeed

    for parameter in loss_model.head.linear.parameters(recurse=False):
        deepspeed.zero.register_external_parameter(loss_model.head, parameter)
