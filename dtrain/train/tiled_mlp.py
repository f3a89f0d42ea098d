"""The MLP of each block over tiles of tokens: only its input is kept, and each tile is computed again in backward.

As in Arctic Long Sequence Training (arXiv 2506.13996, section 3.3), a tile is about as many tokens as the hidden size.
The sum of a weight's gradients over tiles is made in fp32 and given to autograd once, so ZeRO reduces it once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dtrain.errors import BadInput


class TiledMLP(torch.autograd.Function):
    """`mlp(x)` of token-wise `mlp`, x (B, T, H), over so many tiles; `trained` are its trained parameters."""

    @staticmethod
    def forward(ctx: Any, x_BTH: Tensor, mlp: Callable[[Tensor], Tensor], tiles: int, *trained: Tensor) -> Tensor:
        ctx.mlp, ctx.tiles, ctx.trained = mlp, tiles, trained
        ctx.random = _random_state(x_BTH.device)
        ctx.save_for_backward(x_BTH)
        out_BTH = torch.empty_like(x_BTH, memory_format=torch.contiguous_format)
        width = x_BTH.shape[-1]
        for into, tile in zip(*(one.reshape(-1, width).tensor_split(tiles) for one in (out_BTH, x_BTH)), strict=True):
            into.copy_(mlp(tile[None])[0])
        return out_BTH

    @staticmethod
    def backward(ctx: Any, grad_BTH: Tensor) -> tuple[Any, ...]:
        (x_BTH,) = ctx.saved_tensors
        wants_input = ctx.needs_input_grad[0]
        width = x_BTH.shape[-1]
        grad_x_NH = torch.empty_like(x_BTH, memory_format=torch.contiguous_format).view(-1, width)
        sums = [torch.zeros(one.shape, dtype=torch.float32, device=one.device) for one in ctx.trained]
        with torch.enable_grad(), _replayed(ctx.random, x_BTH.device):
            flat = (one.reshape(-1, width).tensor_split(ctx.tiles) for one in (x_BTH, grad_BTH, grad_x_NH))
            for tile, grad, grad_tile in zip(*flat, strict=True):
                tile_1CH = tile.detach()[None].requires_grad_(wants_input)
                sought = [tile_1CH, *ctx.trained] if wants_input else [*ctx.trained]
                found = list(torch.autograd.grad(ctx.mlp(tile_1CH), sought, grad[None]))
                if wants_input:
                    grad_tile.copy_(found.pop(0)[0])
                for total, part in zip(sums, found, strict=True):
                    total += part
        weights = (total.to(one.dtype) for total, one in zip(sums, ctx.trained, strict=True))
        return grad_x_NH.view_as(x_BTH) if wants_input else None, None, None, *weights


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Dropout inside draws what forward drew."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield


def tile(model: Any, tiles: int | None = None) -> None:
    """Tile the MLP of every block of transformers' `model`. BadInput where a block has none that goes by token.

    `tiles`: so many in each call, however few tokens it has: at ZeRO-3 all ranks must call modules in one order, and
    their rows differ in length. None: as many as the tokens need.
    """
    described = model.config.get_text_config()
    found = list(_mlps(model))
    if len(found) != described.num_hidden_layers:
        raise BadInput(
            f"the MLP of {type(model).__name__} cannot be tiled: {len(found)} of {described.num_hidden_layers} blocks "
            "have one that takes and gives hidden states only",
            key="tiled_mlp", value=True, fix="set `tiled_mlp: false`",
        )  # fmt: skip
    for mlp in found:
        _tile_one(mlp, described.hidden_size, tiles)


def gather_whole(model: Any) -> None:
    """At ZeRO-3: an MLP's parameters are gathered once for all its tiles, as their gradients have the whole shape."""
    import deepspeed

    for mlp in _mlps(model):
        for parameter in mlp.parameters():
            deepspeed.zero.register_external_parameter(mlp, parameter)


def _mlps(model: nn.Module) -> Iterator[nn.Module]:
    return (one for name, one in model.named_modules() if name.rpartition(".")[2] == "mlp" and _is_token_wise(one))


def _is_token_wise(module: nn.Module) -> bool:
    """One argument in; experts (whose balance is over all tokens) are no matter of tiles."""
    takes = list(inspect.signature(module.forward).parameters)
    return len(takes) == 1 and not hasattr(module, "experts") and not hasattr(module, "router")


def _tile_one(mlp: nn.Module, tile_tokens: int, tiles: int | None) -> None:
    whole = mlp.forward

    def forward(x_BTH: Tensor) -> Tensor:
        count = tiles or -(-x_BTH.shape[0] * x_BTH.shape[1] // tile_tokens)
        if count == 1:
            return whole(x_BTH)  # type: ignore[no-any-return]
        trained = [one for one in mlp.parameters() if one.requires_grad] if torch.is_grad_enabled() else []
        return TiledMLP.apply(x_BTH, whole, count, *trained)  # type: ignore[no-any-return, no-untyped-call]

    mlp.forward = forward
