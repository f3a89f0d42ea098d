"""The real model's forward and backward on fake CPU tensors, its live bytes counted: what `dtrain plan --trace` runs.

`python -m dtrain.train.trace < specs.json > counted.json`, a child process of `dtrain.planner.trace`: fake tensors can
abort a process, and nobody's torch state is touched. Nothing is allocated, so a 70B model is traced on a laptop.
Weight gradients are dropped as they arrive: how they are kept and sharded is the closed form's part.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dtrain.train import attention, recompute, tiled_mlp
from dtrain.train.batch import Batch
from dtrain.train.live_bytes import LiveBytes
from dtrain.train.loss import LossModel
from dtrain.train.model import implementation
from dtrain.train.sequence_parallel import SequenceShard

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class CountedBytes(LiveBytes):
    """Starts from nothing: only what is made, or named, inside counts."""

    def __enter__(self) -> CountedBytes:
        super().__enter__()
        self.now = self.peak = 0
        self._known = {}
        return self

    def include(self, tensors: Any) -> None:
        for tensor in tensors:
            self._see(tensor)

    def restart_peak(self) -> None:
        self.peak = self.now


def traced(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes. `kept`: from the body's forward to its backward; the peaks include it. Weights are counted apart.

    `padded`: this model computes attention itself, with `attention`, and gets rows beside each other, not one flat row.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _model(spec)
        loss_model = LossModel(model, spec["cross_entropy"], spec["chunks"])
        padded = not getattr(model, "_supports_attention_backend", False)
        batch = _batch(spec, padded)
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
        with _rows_are_documents() if padded else nullcontext(), CountedBytes() as live:
            live.include([*model.parameters(), *model.buffers()])
            weights = live.now
            counted = _step(loss_model, batch, live)
    own = model.config._attn_implementation if padded else spec["attention"]
    sizes = {name: size - weights for name, size in counted.items()}
    return {"padded": padded, "attention": own, "weights": weights, **sizes}


def _step(loss_model: LossModel, batch: Batch, live: CountedBytes) -> dict[str, int]:
    counted: dict[str, int] = {}

    def before_head(*_: Any) -> None:
        counted["kept"], counted["forward_peak"] = live.now, live.peak
        live.restart_peak()

    loss_model.head.register_forward_pre_hook(before_head)
    loss = loss_model(batch)
    counted["loss_peak"], counted["loss_kept"] = live.peak, live.now
    live.restart_peak()
    loss.backward()
    return {**counted, "backward_peak": live.peak}


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _model(spec: Mapping[str, Any]) -> Any:
    import transformers

    attention.register()
    config = transformers.AutoConfig.for_model(**spec["config"])
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=DTYPES[spec["dtype"]], attn_implementation=implementation(config, spec["attention"])
    )
    model.train()
    model.config.use_cache = False
    if spec["checkpointing"] != "none":
        recompute.enable(model, spec["checkpointing"])
    if spec["tiled_mlp"]:
        tiled_mlp.tile(model)
    return model


@contextmanager
def _rows_are_documents() -> Iterator[None]:
    """transformers looks for several documents in a row, and makes a mask where it cannot look, as in fake tensors."""
    from transformers import masking_utils

    looks = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda _: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = looks


def _batch(spec: Mapping[str, Any], padded: bool) -> Batch:
    """One flat row of `rows` documents of `sequence_len` tokens, or as many rows; of their positions the first
    `trained_share` are trained. With sequence parallel the first rank's part, whose exchanges send nothing."""
    rows, length, ranks = spec["rows"], spec["sequence_len"], spec["sequence_parallel_size"]
    shard = SequenceShard(0, ranks, None) if ranks > 1 else None
    tokens = -(-rows * length // ranks)
    filling = tokens * ranks - rows * length
    trained = max(1, round(tokens * spec["trained_share"]))
    positions = torch.arange(length).repeat(rows)[:tokens]
    shape = (rows, length) if padded else (1, tokens)
    documents = (length,) * rows + ((filling,) if filling else ())
    arguments = {"document_lengths": documents, **({"sequence_shard": shard} if shard else {})}
    return Batch(
        ids_BT=torch.zeros(shape, dtype=torch.long),
        position_ids_BT=positions.reshape(shape),
        positions_N=torch.arange(trained),
        targets_N=torch.zeros(trained, dtype=torch.long),
        attention_arguments={} if padded else arguments,
    )


def main() -> None:
    print(json.dumps([traced(spec) for spec in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
