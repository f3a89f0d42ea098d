"""Live tensor bytes on a CPU against sums done by hand."""

from __future__ import annotations

import torch

from dtrain.train.live_bytes import LiveBytes
from dtrain.train.memory import PeakMemory

MIB = 2**20


def test_counts_what_is_alive_at_once_not_what_was_ever_made() -> None:
    before = torch.zeros(MIB)  # 4 MiB, alive at entry
    with LiveBytes() as live:
        start = live.now
        for _ in range(5):
            torch.ones(2 * MIB)  # 8 MiB, gone at once
        kept = torch.ones(MIB)
        view = kept.view(2, -1)[1:]  # a view adds nothing
        assert live.now - start == 4 * MIB
    assert live.peak - start == 8 * MIB
    assert start >= before.numel() * 4
    assert view.numel() == MIB // 2


def test_sees_the_backward_pass_and_the_optimizer() -> None:
    model = torch.nn.Linear(512, 512, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    weight = 512 * 512 * 4
    with LiveBytes() as live:
        start = live.now
        model(torch.ones(1, 512)).sum().backward()
        optimizer.step()
        after = live.now - start
    assert 3 * weight <= after < 3.05 * weight  # a gradient and two moments
    assert live.peak - start < 5.1 * weight


def test_a_peak_is_kept_over_several_watched_blocks_and_nothing_is_counted_outside() -> None:
    memory = PeakMemory(torch.device("cpu"))
    with memory.watched():
        big = torch.ones(16 * MIB)
        del big
    peak = memory.figures()["allocated_gib"]
    torch.ones(64 * MIB)
    with memory.watched(really=False):
        torch.ones(64 * MIB)
    with memory.watched():
        torch.ones(MIB)
    assert memory.figures()["allocated_gib"] == peak
    assert peak * 2**30 >= 64 * MIB
