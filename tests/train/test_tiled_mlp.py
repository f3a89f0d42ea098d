"""The MLP over tiles of tokens gives what the whole one gives, on real models of several families, dropout included."""

from __future__ import annotations

import pytest
import torch

from dtrain.errors import BadInput
from dtrain.train import tiled_mlp
from tests.train.test_attention import tiny


def loss_and_gradients(family: str, tiled: bool) -> tuple[float, list[torch.Tensor]]:
    """Of 2 × 60 random tokens, four tiles of a hidden size of 32."""
    model = tiny(family, "eager").train()
    if tiled:
        tiled_mlp.tile(model)
    ids = torch.randint(0, 96, (2, 60), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    loss = model(input_ids=ids, use_cache=False).logits.logsumexp(-1).sum()
    loss.backward()
    return loss.item(), [one.grad for one in model.parameters() if one.grad is not None]


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi", "gpt2", "falcon"])
def test_tiles_change_neither_loss_nor_gradients(family: str) -> None:
    """GPT-2 drops a tenth of its MLP's outputs; Falcon adds to the output in place."""
    whole, tiled = loss_and_gradients(family, tiled=False), loss_and_gradients(family, tiled=True)
    assert tiled[0] == pytest.approx(whole[0], rel=1e-6)
    assert len(tiled[1]) == len(whole[1])
    for ours, reference in zip(tiled[1], whole[1], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5 * reference.abs().max().item())


@pytest.mark.parametrize("family", ["mixtral", "opt", "bloom"])
def test_what_does_not_go_token_by_token_is_refused(family: str) -> None:
    with pytest.raises(BadInput, match="cannot be tiled: 0 of 2 blocks"):
        tiled_mlp.tile(tiny(family, "eager"))


def test_a_fixed_number_of_tiles_holds_for_few_tokens_too() -> None:
    """Also more tiles than tokens."""
    calls: list[int] = []
    model = tiny("llama", "eager")
    mlp = model.model.layers[0].mlp
    whole = mlp(torch.ones(1, 3, 32))
    mlp.gate_proj.register_forward_hook(lambda *_: calls.append(1))
    tiled_mlp.tile(model, tiles=4)
    for tokens in (3, 40):
        x = torch.ones(1, tokens, 32, requires_grad=True)
        out = mlp(x)
        out.sum().backward()
        assert x.grad is not None
        torch.testing.assert_close(out[:, :3], whole, rtol=1e-5, atol=1e-6)
    assert len(calls) == 2 * (4 + 4)


def test_one_tile_is_the_plain_mlp() -> None:
    model = tiny("llama", "eager")
    tiled_mlp.tile(model)
    mlp = model.model.layers[0].mlp
    assert "TiledMLP" not in type(mlp(torch.randn(1, 32, 32)).grad_fn).__name__
    assert "TiledMLP" in type(mlp(torch.randn(1, 33, 32)).grad_fn).__name__
