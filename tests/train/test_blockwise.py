"""8-bit blocks against bitsandbytes' own."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
functional = pytest.importorskip("bitsandbytes.functional")

from dtrain.train.blockwise import BLOCK, dequantised, quantised  # noqa: E402


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("numel", [4096, 5000, 100])
def test_blocks_are_those_of_bitsandbytes_and_no_worse(signed: bool, numel: int) -> None:
    torch.manual_seed(0)
    numbers = torch.randn(numel) * 1e-3
    if not signed:
        numbers = numbers.square()
    book = functional.create_dynamic_map(signed)
    codes, maxima = quantised(numbers, book)
    theirs, state = functional.quantize_blockwise(numbers, code=book, blocksize=BLOCK)
    assert torch.equal(maxima, state.absmax)
    back, back_theirs = dequantised(codes, maxima, book), functional.dequantize_blockwise(theirs, state)
    assert torch.equal(dequantised(theirs, state.absmax, book), back_theirs)
    # on a CPU bitsandbytes rounds by a table, not always to the nearest code
    assert (back - numbers).abs().sum() <= (back_theirs - numbers).abs().sum()
    # hardly anything moves the second time: the signed book has 1 but not -1, so a block's maximum may shrink
    assert (quantised(back, book)[0] != codes).float().mean() < 0.001


def test_zeros_stay_zeros() -> None:
    book = functional.create_dynamic_map(True)
    codes, maxima = quantised(torch.zeros(300), book)
    assert torch.equal(dequantised(codes, maxima, book), torch.zeros(300))
