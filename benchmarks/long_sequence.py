"""The longest sequence that fits, techniques switched on one by one: `python -m benchmarks.long_sequence [--out FILE]`.

By the planner's closed form, for full training with bf16 weights and fp32 masters, one row a step. No GPU is needed,
and none was used: the published runs beside it are Arctic Long Sequence Training's (arXiv 2506.13996), as quoted in
tests/measured/published_memory.json. `--trace` counts each layout's activations on the real code, at 4,096 tokens.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dtrain.hardware.profiles import resolve_profile
from dtrain.models.facts import ModelFacts
from dtrain.models.hub import load_facts
from dtrain.planner.memory import estimate_memory
from dtrain.planner.plan import versions
from dtrain.planner.setup import Setup
from dtrain.planner.trace import TraceTerm, trace_all

MODELS = ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-14B")
PROFILES = ("4090x1", "h100x1", "h200x1", "h100x8")
HOST_MEMORY_GIB = 1900.0
"""Of a node with eight H100 (p5.48xlarge: 2 TiB), which the published single-card runs had to themselves as well."""
STEP_TOKENS = 1024
MOST_TOKENS = 2**25
TRACED_TOKENS = 4096

RUNGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("whole logits", {"cross_entropy": "eager"}),
    ("+ loss in chunks", {"cross_entropy": "chunked"}),
    ("+ rows over all GPUs", {"sequence_parallel_size": 0}),
    ("+ inputs of blocks on the host", {"checkpointing": "offload"}),
    ("+ MLP in tiles", {"tiled_mlp": True}),
)
"""Each keeps what the ones before it switched on. Under all: ZeRO-3, full checkpointing, the optimizer on the
host; the weights too where there is one card."""

PUBLISHED: dict[tuple[str, str, str], int] = {
    ("meta-llama/Llama-3.1-8B", "h200x1", "whole logits"): 65_000,
    ("meta-llama/Llama-3.1-8B", "h200x1", "+ loss in chunks"): 300_000,
    ("meta-llama/Llama-3.1-8B", "h200x1", "+ inputs of blocks on the host"): 650_000,
    ("meta-llama/Llama-3.1-8B", "h200x1", "+ MLP in tiles"): 1_200_000,
    ("meta-llama/Llama-3.1-8B", "h100x1", "+ MLP in tiles"): 500_000,
    ("meta-llama/Llama-3.1-8B", "h100x8", "whole logits"): 32_000,
    ("meta-llama/Llama-3.1-8B", "h100x8", "+ MLP in tiles"): 3_700_000,
}
"""Tokens of ArcticTraining's recipes (projects/sequence-parallelism at b28638e) and of the paper's abstract."""


@dataclass(frozen=True)
class Rung:
    model: str
    profile: str
    technique: str
    longest_tokens: int
    """0: not even the shortest fits."""
    peak_gib: float | None
    host_memory_gib: float | None
    limit: str
    """What a longer sequence would break: the card, the host, or the search's end."""
    published_tokens: int | None


def ladder(model: str, profile: str) -> Iterator[Rung]:
    """One model on one machine, rung by rung."""
    setup = base(load_facts(model, revision=None, config_dir=None), profile)
    for technique, changes in RUNGS:
        if "sequence_parallel_size" in changes:
            if setup.ranks == 1:
                continue
            changes = {"sequence_parallel_size": setup.ranks}
        setup = replace(setup, **changes)
        yield rung(model, profile, technique, setup)


def base(facts: ModelFacts, profile: str) -> Setup:
    machine = replace(resolve_profile(profile), host_memory_gib=HOST_MEMORY_GIB)
    return Setup(
        facts=facts, profile=machine, sequence_len=STEP_TOKENS, micro_batch_size=1, accumulation=1, sharding="zero3",
        offload_optimizer="cpu", offload_params="cpu" if machine.gpus == 1 else "none",
        checkpointing="full", attention="flash_attention_2", expandable_segments=True,
    )  # fmt: skip


def rung(model: str, profile: str, technique: str, setup: Setup) -> Rung:
    tokens = longest(setup)
    memory = estimate_memory(replace(setup, sequence_len=tokens)) if tokens else None
    return Rung(
        model, profile, technique, tokens,
        round(memory.peak, 2) if memory else None, round(memory.host_memory_gib, 1) if memory else None,
        limit(setup, tokens),
        PUBLISHED.get((model, profile, technique)),
    )  # fmt: skip


def longest(setup: Setup) -> int:
    """The most tokens of a row, a multiple of 1,024, that fit card and host, by halving."""
    low, high = 0, MOST_TOKENS // STEP_TOKENS
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if limit(setup, (middle - 1) * STEP_TOKENS) == "" else (low, middle - 1)
    return low * STEP_TOKENS


def limit(setup: Setup, tokens: int) -> str:
    """What `tokens` and one step more would break."""
    memory = estimate_memory(replace(setup, sequence_len=tokens + STEP_TOKENS))
    if memory.peak > setup.profile.gpu.memory_gib:
        return "card"
    if memory.host_memory_gib > setup.profile.host_memory_gib:
        return "host"
    return "search" if tokens >= MOST_TOKENS else ""


# --- on the real code ---------------------------------------------------------------------------------------------


def traced(models: tuple[str, ...]) -> list[dict[str, Any]]:
    """Each rung's closed form beside live bytes of the code that trains, on fake CPU tensors."""
    layouts, names = [], []
    for model in models:
        facts = load_facts(model, revision=None, config_dir=None)
        setup = replace(
            base(facts, "cpu"),
            sequence_len=TRACED_TOKENS,
            attention="sdpa",
            offload_optimizer="none",
            offload_params="none",
        )
        for technique, changes in RUNGS:
            if "sequence_parallel_size" not in changes:
                setup = replace(setup, **changes)
                layouts.append((setup, dict(facts.config)))
                names.append((model, technique))
    return [
        {"model": model, "technique": technique, "tokens": TRACED_TOKENS, **worst(terms).as_json()}
        for (model, technique), terms in zip(names, trace_all(layouts), strict=True)
    ]


def worst(terms: list[TraceTerm]) -> TraceTerm:
    """The largest moment of a step, which decides."""
    return max(terms, key=lambda term: term.traced_gib if term.name.endswith("peak") else 0.0)


# --- in words -----------------------------------------------------------------------------------------------------


def table(rungs: list[Rung]) -> str:
    head = ("model", "machine", "technique", "tokens", "peak", "host", "ends at", "published")
    lines = ["{:36} {:8} {:32} {:>12} {:>7} {:>7} {:>8} {:>9}".format(*head)]
    lines += [
        f"{one.model:36} {one.profile:8} {one.technique:32} {one.longest_tokens:>12,} {one.peak_gib or 0:>7.1f} "
        f"{one.host_memory_gib or 0:>7.0f} {one.limit:>8} {one.published_tokens or '':>9}"
        for one in rungs
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--profiles", nargs="+", default=PROFILES)
    parser.add_argument("--trace", action="store_true", help="also count on the real code (minutes)")
    parser.add_argument("--out", type=Path, help="write JSON there")
    told = parser.parse_args()
    rungs = [one for model in told.models for profile in told.profiles for one in ladder(model, profile)]
    print(table(rungs))
    counted = traced(tuple(told.models)) if told.trace else []
    for one in counted:
        print(
            f"{one['model']:36} {one['technique']:32} {one['name']}: {one['error']:+.1%} of {one['traced_gib']:.2f} GiB"
        )
    if told.out:
        document = {
            "schema_version": 1, "date": time.strftime("%Y-%m-%d"), "versions": versions(), "device": "none: on paper",
            "host_memory_gib": HOST_MEMORY_GIB, "rungs": [asdict(one) for one in rungs], "traced": counted,
        }  # fmt: skip
        told.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
