"""Live tensor bytes on a CPU, where torch keeps no count: a dispatch mode that watches storages come and go."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside the `with`, `peak` is the most bytes of tensor storage alive at once, those alive at entry included.

    Each storage counts once however many tensors view it. Only this thread's operations are seen: on a CPU the
    backward pass runs in the calling thread.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self.failed_at: int | None = None
        """Bytes alive when an operation inside raised: memory may have been what it lacked."""
        self._known: dict[int, tuple[int, weakref.ref[Any]]] = {}

    def __enter__(self) -> LiveBytes:
        self.now, self._known = 0, {}
        for tensor in _all_tensors():
            self._see(tensor)
        self.peak = self.now
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            out = func(*args, **(kwargs or {}))
        except BaseException:
            self.failed_at = self.now
            raise
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        return out

    def _see(self, tensor: torch.Tensor) -> None:
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse, meta and wrapped tensors hold no plain storage
            return
        key = storage._cdata
        if tensor.device.type != "cpu":
            return
        size = storage.nbytes()
        before, reference = self._known.get(key) or (0, weakref.ref(storage, lambda _: self._gone(key)))
        self._known[key] = size, reference
        self.now += size - before  # storages are resized in place by ZeRO-3
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int) -> None:
        size, _ = self._known.pop(key, (0, None))
        self.now -= size


def _all_tensors() -> Iterable[torch.Tensor]:
    gc.collect()
    return [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
