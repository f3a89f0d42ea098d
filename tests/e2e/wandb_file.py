"""What a W&B run recorded offline: the records of its .wandb file, a LevelDB log behind a header of 7 bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768
HEADER = struct.Struct("<IHB")
FULL, FIRST, LAST = 1, 2, 4


def summary_of(file: Path) -> dict[str, Any]:
    """The run's summary: the last value of each key."""
    from wandb.proto import wandb_internal_pb2

    summary: dict[str, Any] = {}
    for raw in _records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(raw)
        summary |= {item.key: json.loads(item.value_json) for item in record.summary.update}
    return summary


def _records(data: bytes) -> Iterator[bytes]:
    at, whole = HEADER.size, b""
    while at + HEADER.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER.size:  # a block's end too short for another record
            at += left
            continue
        _, size, kind = HEADER.unpack_from(data, at)
        body = data[at + HEADER.size : at + HEADER.size + size]
        at += HEADER.size + size
        whole = body if kind in (FULL, FIRST) else whole + body
        if kind in (FULL, LAST):
            yield whole
