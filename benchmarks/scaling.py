"""Scale on paper, from 1 to 1,024 GPUs: `python -m benchmarks.scaling [--out docs/scaling.md]`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dtrain.config.load import loads
from dtrain.config.origins import Loaded
from dtrain.hardware.prices import offers
from dtrain.hardware.profiles import Profile, resolve_profile
from dtrain.models.facts import ModelFacts
from dtrain.models.hub import load_facts
from dtrain.planner.plan import Plan, make_plan

CASES = (
    ("meta-llama/Llama-3.1-8B", 3200),
    ("meta-llama/Llama-3.1-8B", 100),
    ("meta-llama/Llama-3.1-70B", 3200),
    ("meta-llama/Llama-3.1-70B", 400),
    ("meta-llama/Llama-3.1-405B", 3200),
)
"""Models, and Gbit/s between nodes: InfiniBand or EFA of H100 clusters, and what cheaper clouds have."""
GPU_COUNTS = tuple(2**power for power in range(11))
WINDOW = 4096
GLOBAL_BATCH = 1024
"""Sequences per optimizer step, the same on every machine: 4.2 million tokens."""
BAR_CELLS = 20

TEXT = f"""\
base_model: MODEL
datasets: [{{path: not-needed, type: completion}}]
sequence_len: {WINDOW}
sample_packing: true
global_batch_size: {GLOBAL_BATCH}
max_steps: 1
"""


@dataclass(frozen=True)
class Point:
    """One model on one number of GPUs; `plan` is None where it does not fit."""

    gpus: int
    plan: Plan | None
    usd_per_gpu_hour: float

    @property
    def tokens_per_second(self) -> float:
        return self.plan.time.tokens_per_second if self.plan else 0.0

    @property
    def usd_per_billion_tokens(self) -> float:
        return 1e9 / self.tokens_per_second / 3600 * self.usd_per_gpu_hour * self.gpus


def points(model: str, network_gbit_per_s: float) -> list[Point]:
    loaded, facts = loads(TEXT.replace("MODEL", model)), load_facts(model, revision=None, config_dir=None)
    return [_point(loaded, facts, profile_with(gpus, network_gbit_per_s)) for gpus in GPU_COUNTS]


def _point(loaded: Loaded, facts: ModelFacts, profile: Profile) -> Point:
    plan = make_plan(loaded, profile, facts)
    return Point(profile.gpus, plan if plan.accepted else None, usd_per_gpu_hour())


def profile_with(gpus: int, network_gbit_per_s: float) -> Profile:
    """H100 nodes of eight; fewer in one node."""
    usual = resolve_profile(f"h100x{gpus}" if gpus <= 8 else f"h100x8x{gpus // 8}")
    return replace(usual, network_gbit_per_s=network_gbit_per_s)


def usd_per_gpu_hour() -> float:
    """The cheapest whole machine of eight that is no marketplace's, a card and hour of it, at any scale."""
    whole = [one for one in offers(resolve_profile("h100x8")) if one.kind == "on-demand"]
    return whole[0].usd_per_hour / 8


# --- the document -------------------------------------------------------------------------------------------------


def document() -> str:
    return "\n".join(
        [
            "# How far it scales, on paper",
            "",
            "Written by `python -m benchmarks.scaling --out docs/scaling.md`; a test keeps it so. Nothing here was",
            "run: these are the planner's figures, with the errors that docs/planner_accuracy.md shows.",
            "",
            f"H100 SXM, eight to a node; windows of {WINDOW:,} tokens, {GLOBAL_BATCH:,} a step on any number of GPUs",
            f"({GLOBAL_BATCH * WINDOW / 1e6:.1f} million tokens), so results stay the same; dollars at",
            f"${usd_per_gpu_hour():.2f} a GPU and hour. Each row is the layout that the planner takes.",
            *(line for model, network in CASES for line in _section(model, network)),
            "",
            *_reasons(),
            "",
        ]
    )


def _section(model: str, network_gbit_per_s: float) -> Iterator[str]:
    planned = points(model, network_gbit_per_s)
    best = max(point.tokens_per_second / point.gpus for point in planned)
    yield from ("", f"## {model}, {network_gbit_per_s:,} Gbit/s between nodes", "")
    yield "| GPUs | tokens/s | per GPU | of the best | $ per billion tokens | MFU | layout | collectives | other |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for point in planned:
        yield _row(point, best)


def _row(point: Point, best_per_gpu: float) -> str:
    plan = point.plan
    if plan is None:
        return f"| {point.gpus:,} | does not fit | | | | | | | |"
    share = point.tokens_per_second / point.gpus / best_per_gpu
    cells = [
        f"{point.gpus:,}",
        f"{point.tokens_per_second:,.0f}",
        f"{point.tokens_per_second / point.gpus:,.0f}",
        f"{'█' * round(BAR_CELLS * share)} {share:.0%}",
        f"{point.usd_per_billion_tokens:,.2f}",
        f"{plan.time.mfu or 0:.0%}",
        layout(plan),
        f"{plan.time.parts['collectives'] / plan.time.step_seconds:.0%}",
        f"{_rest(plan) / plan.time.step_seconds:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def layout(plan: Plan) -> str:
    choice = plan.choice
    words = [f"ZeRO {choice.zero_stage}", f"{choice.micro_batch_size} × {choice.gradient_accumulation_steps}"]
    if choice.offload_optimizer != "none":
        words.append("offload")
    if choice.gradient_checkpointing != "none":
        words.append(choice.gradient_checkpointing)
    return ", ".join(words)


def _rest(plan: Plan) -> float:
    parts = plan.time.parts
    return sum(parts[name] for name in ("launches", "optimizer", "offload", "other"))


def _reasons() -> list[str]:
    return [
        "## Why it bends",
        "",
        "- **Few GPUs**: the states do not fit, so they go to the host, or activations are computed twice. Both are",
        "  paid on every step; more GPUs shard the states, and each runs faster.",
        "- **Many GPUs**: a step has the same tokens, so each GPU has fewer of them, while the weights and gradients",
        "  that travel stay the same. Once a pass is shorter than its collectives they stick out; with one micro-batch",
        "  a step there is no accumulation left to spread the gradients' reduction over.",
        "- **Latency**: a ring waits at each rank: a collective over 1,024 GPUs takes milliseconds even for no data.",
        "- **Stragglers**: everybody waits for the slowest; with each doubling of nodes a little longer.",
        "- A larger `global_batch_size` moves the bend to the right in proportion; dtrain never changes it by itself.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the document here")
    told = parser.parse_args()
    page = document()
    if told.out:
        told.out.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
