"""Units, written once: bytes as GiB, seconds as words, dollars, counts."""

from __future__ import annotations

GIB = 2**30
"""Bytes in a GiB; every `_gib` in dtrain is this."""


def gib(size_bytes: float) -> float:
    return size_bytes / GIB


def memory(size_gib: float) -> str:
    """`41 MiB`, `17.2 GiB`, `1,024 GiB`."""
    if abs(size_gib) < 0.1:
        return f"{size_gib * 1024:.0f} MiB" if abs(size_gib) * 1024 >= 9.5 else f"{size_gib * 1024:.1f} MiB"
    return f"{size_gib:.2f} GiB" if abs(size_gib) < 10 else f"{size_gib:,.1f} GiB"


def duration(seconds: float) -> str:
    """`12 ms`, `0.4 s`, `12 s`, `3 min 20 s`, `4 h 05 min`, `2 d 3 h`."""
    whole = round(seconds)
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def count(number: float) -> str:
    """`950`, `12.3k`, `1.10B`: for parameters and tokens."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.2f}{letter}" if letter in "TB" else f"{number / size:.1f}{letter}"
    return f"{number:.0f}"


def dollars(usd: float) -> str:
    return f"${usd:,.2f}"
