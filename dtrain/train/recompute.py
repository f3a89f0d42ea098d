"""Activation checkpointing: what a block keeps from its forward pass, and what its backward pass computes again.

`full` keeps a block's input. `selective` keeps besides what is dear to compute: outputs of attention and of every
second matmul (torchtitan's per-op policy). `offload` keeps the input in host memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from dtrain.errors import RunFailed

MATMULS = frozenset({"aten::mm", "aten::addmm", "aten::_scaled_mm", "aten::_grouped_mm"})
ATTENTION = frozenset({
    "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "torch_attn::_varlen_attn", "flash_attn::_flash_attn_forward", "flash_attn::_flash_attn_varlen_forward",
    "flash_attn_3::fwd",
})  # fmt: skip
"""Kernels of the back ends, by the names torch dispatches."""


def enable(model: Any, kind: str, use_reentrant: bool | None = None, adapter_rank: int | None = None) -> None:
    """Switch checkpointing of every block on. `kind`: full, selective or offload.

    `adapter_rank`: products with a side of that length belong to adapters, too cheap to be counted as matmuls.
    """
    told: dict[str, Any] = {"use_reentrant": bool(use_reentrant)}
    if kind == "selective":
        keeps_attention = not any(getattr(model.config, name, 0) for name in ("attention_dropout", "attn_pdrop"))
        told["context_fn"] = partial(selective_contexts, keeps_attention, adapter_rank)
    call = partial(checkpoint, **told)
    model._set_gradient_checkpointing(True, partial(offloaded, call) if kind == "offload" else call)


# --- selective -------------------------------------------------------------------------------------------------------


class _Chosen:
    """Which operations of a block are kept, by the order in which they run: the same forward and recomputed."""

    def __init__(self, keeps_attention: bool, adapter_rank: int | None) -> None:
        self._keeps_attention = keeps_attention  # kept attention draws no dropout again, and what follows would differ
        self._adapter_rank = adapter_rank
        self._matmuls = 0

    def __call__(self, func: Any, args: tuple[Any, ...]) -> bool:
        name = func._schema.name
        if name in ATTENTION:
            return self._keeps_attention
        if name not in MATMULS or self._is_of_adapter(args):
            return False
        self._matmuls += 1
        return self._matmuls % 2 == 1

    def _is_of_adapter(self, args: tuple[Any, ...]) -> bool:
        weight = [one for one in args if isinstance(one, Tensor)][-1]
        return self._adapter_rank in weight.shape


class _Keeping(TorchDispatchMode):
    def __init__(self, chosen: _Chosen, kept: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._chosen, self._kept = chosen, kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._chosen(func, args):
            self._kept.append(tree_map(_with_version, out))
        return out


class _Using(TorchDispatchMode):
    """torch's own contexts refuse any operation that forward had not; at ZeRO-3 gathering differs each time."""

    def __init__(self, chosen: _Chosen, kept: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._chosen, self._kept, self._next = chosen, kept, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._chosen(func, args):
            return func(*args, **(kwargs or {}))
        found, self._kept[self._next] = self._kept[self._next], None
        self._next += 1
        return tree_map(_unchanged, found)


def selective_contexts(keeps_attention: bool, adapter_rank: int | None) -> tuple[_Keeping, _Using]:
    """For `torch.utils.checkpoint`: one context around a block's forward, one around its recomputation."""
    kept: list[Any] = []
    return _Keeping(_Chosen(keeps_attention, adapter_rank), kept), _Using(_Chosen(keeps_attention, adapter_rank), kept)


class _Kept:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor.detach(), tensor._version


def _with_version(out: Any) -> Any:
    return _Kept(out) if isinstance(out, Tensor) else out


def _unchanged(kept: Any) -> Any:
    if not isinstance(kept, _Kept):
        return kept
    if kept.tensor._version != kept.version:
        raise RunFailed(
            "this model writes over a matmul's output, which selective checkpointing keeps",
            key="gradient_checkpointing", fix="set `gradient_checkpointing: full`",
        )  # fmt: skip
    return kept.tensor


# --- offload ---------------------------------------------------------------------------------------------------------


def offloaded(call: Callable[..., Any], run: Callable[..., Any], *args: Any) -> Any:
    """A checkpointed block whose input waits in host memory for the backward pass (pinned where there is a GPU)."""
    with torch.autograd.graph.saved_tensors_hooks(_to_host, _from_host):
        return call(run, *args)


def _to_host(tensor: Tensor) -> tuple[torch.device, Tensor]:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
    # the copy back is ordered behind this one on the same stream, and nobody else reads it
    return tensor.device, host.copy_(tensor, non_blocking=True)


def _from_host(packed: tuple[torch.device, Tensor]) -> Tensor:
    device, host = packed
    return host.to(device, non_blocking=True)
