"""Liger's fused head and cross-entropy, for `cross_entropy: fused`: a Triton kernel, so CUDA only.

Shapes: H hidden size, V vocabulary, N trained positions.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from dtrain.errors import BadInput, PartMissing


def fused_cross_entropy(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_N: Tensor, softcap: float | None, scale: float
) -> Tensor:
    """The sum of cross-entropies. A constant factor of the logits is given to the hidden states."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    scaled_NH = hidden_NH if scale == 1.0 else hidden_NH * scale
    if bias_V is not None and scale != 1.0:
        bias_V = bias_V * scale
    # in 16 bits its sum of the weight's gradients over chunks would lose the small ones
    fused = LigerFusedLinearCrossEntropyLoss(reduction="sum", softcap=softcap, accum_dtype=torch.float32)
    loss: Tensor = fused(weight_VH, scaled_NH, targets_N, bias_V)
    return loss.float()


def require(device: torch.device, dtype: torch.dtype) -> None:
    """PartMissing or BadInput where the kernel is not there, cannot run, or gives wrong numbers on this device."""
    if importlib.util.find_spec("liger_kernel") is None:
        raise PartMissing(
            "cross_entropy: fused needs Liger's kernels", key="cross_entropy", value="fused",
            fix="pip install liger-kernel, or set `cross_entropy: chunked`",
        )  # fmt: skip
    reason = "it needs a CUDA GPU" if device.type != "cuda" else _wrong_numbers(device, dtype)
    if reason:
        raise BadInput(
            f"Liger's fused loss cannot be used here: {reason}", key="cross_entropy", value="fused",
            fix="set `cross_entropy: chunked`",
        )  # fmt: skip


def _wrong_numbers(device: torch.device, dtype: torch.dtype) -> str | None:
    """Against torch's own, forward and backward of a loss that is scaled, as accumulation scales it."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*shape, generator=generator).to(device, dtype) for shape in ((32, 64), (128, 64)))
    targets = torch.randint(0, 128, (32,), generator=generator).to(device)
    hidden.requires_grad_()
    weight.requires_grad_()
    try:
        ours = fused_cross_entropy(hidden, weight, None, targets, None, 1.0)
        got = torch.autograd.grad(ours * 0.37, (hidden, weight))
    except Exception as error:  # a kernel that does not fit this machine can fail in any way
        return f"its kernel failed: {type(error).__name__}"
    logits = torch.nn.functional.linear(hidden, weight).float()
    expected = torch.autograd.grad(
        torch.nn.functional.cross_entropy(logits, targets, reduction="sum") * 0.37, (hidden, weight)
    )
    errors = [(a - b).abs().max().item() / b.abs().max().item() for a, b in zip(got, expected, strict=True)]
    return None if max(errors) < 0.02 else f"its gradients differ from the reference by {max(errors):.1%}"
