"""What a rank's memory peaked at: torch's own counters on a GPU, live tensor bytes on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dtrain.train.live_bytes import LiveBytes
from dtrain.units import gib


class PeakMemory:
    """The peak of this process. On a CPU only `watched` blocks are seen, since watching costs speed there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._cpu_peak_bytes = 0
        self._cpu_failed_at: int | None = None

    @contextmanager
    def watched(self, really: bool = True) -> Iterator[None]:
        if self.device.type == "cuda" or not really:
            yield
            return
        live = LiveBytes()
        try:
            with live:
                yield
        finally:
            self._cpu_peak_bytes = max(self._cpu_peak_bytes, live.peak)
            self._cpu_failed_at = live.failed_at

    def when_it_failed_gib(self, asked_gib: float) -> float:
        """Allocated when the last operation failed, asking for so much; where that was not seen, the peak was not
        passed."""
        if self.device.type == "cuda" or self._cpu_failed_at is None:
            return max(0.0, self.figures()["allocated_gib"] - asked_gib)
        return gib(self._cpu_failed_at)

    def figures(self) -> dict[str, float]:
        """`allocated_gib` and `reserved_gib` so far. On a CPU both are the live tensor bytes seen while watched."""
        if self.device.type == "cuda":
            return {
                "allocated_gib": gib(torch.cuda.max_memory_allocated(self.device)),
                "reserved_gib": gib(torch.cuda.max_memory_reserved(self.device)),
            }
        return {"allocated_gib": gib(self._cpu_peak_bytes), "reserved_gib": gib(self._cpu_peak_bytes)}
