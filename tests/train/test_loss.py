"""The chunked loss against torch's own cross-entropy: value, gradients, any scale, any number of chunks."""

from __future__ import annotations

import pytest
import torch

from dtrain.errors import BadInput, PartMissing
from dtrain.train.fused_loss import require
from dtrain.train.loss import ChunkedCrossEntropy, _cross_entropy, _shape_logits


def reference(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    softcap: float | None,
    scale: float,
) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return torch.nn.functional.cross_entropy(_shape_logits(logits, softcap, scale), targets, reduction="sum")


@pytest.mark.parametrize("chunks", [1, 3, 37])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("outer", [1.0, 0.125])
def test_equals_torch(chunks: int, softcap: float | None, scale: float, with_bias: bool, outer: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 16, generator=generator).requires_grad_()
    weight = torch.randn(50, 16, generator=generator).requires_grad_()
    bias = torch.randn(50, generator=generator).requires_grad_() if with_bias else None
    targets = torch.randint(0, 50, (37,), generator=generator)
    inputs = [tensor for tensor in (hidden, weight, bias) if tensor is not None]

    ours = ChunkedCrossEntropy.apply(hidden, weight, bias, targets, chunks, softcap, scale, _cross_entropy) * outer  # type: ignore[no-untyped-call]
    theirs = reference(hidden, weight, bias, targets, softcap, scale) * outer

    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    got, expected = torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_bf16_weights_get_bf16_gradients_summed_in_fp32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(512, 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(20, 16, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(0, 20, (512,), generator=generator)
    loss = ChunkedCrossEntropy.apply(hidden, weight, None, targets, 512, None, 1.0, _cross_entropy)  # type: ignore[no-untyped-call]
    (grad,) = torch.autograd.grad(loss, weight)
    exact_hidden, exact_weight = hidden.detach().float(), weight.detach().float().requires_grad_()
    (exact,) = torch.autograd.grad(reference(exact_hidden, exact_weight, None, targets, None, 1.0), exact_weight)
    assert grad.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert (
        grad.float() - exact
    ).abs().max() < 0.02 * exact.abs().max()  # bf16 running sums of 512 terms would be off by far more


def test_without_gradients_none_are_computed() -> None:
    hidden, weight, targets = torch.randn(4, 8), torch.randn(10, 8), torch.randint(0, 10, (4,))
    with torch.no_grad():
        loss = ChunkedCrossEntropy.apply(hidden, weight, None, targets, 2, None, 1.0, _cross_entropy)  # type: ignore[no-untyped-call]
    assert not loss.requires_grad
    torch.testing.assert_close(loss, reference(hidden, weight, None, targets, None, 1.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_compiled_chunk_loss_is_the_plain_one() -> None:
    hidden, weight = (torch.randn(300, 64, device="cuda"), torch.randn(1000, 64, device="cuda"))
    targets = torch.randint(0, 1000, (300,), device="cuda")
    told = (hidden, weight, None, targets, None, 1.0, True)
    compiled = torch.compile(_cross_entropy, dynamic=True)(*told)
    for ours, plain in zip(compiled, _cross_entropy(*told), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_the_fused_loss_says_what_it_lacks() -> None:
    with pytest.raises((PartMissing, BadInput), match="Liger"):
        require(torch.device("cpu"), torch.float32)
