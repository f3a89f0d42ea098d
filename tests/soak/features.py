"""Every pair of long-sequence and memory features: refused by name at plan time, or it trains.

    python -m tests.soak.features --json tests/soak/features.json

All pairs are planned. Those that a plan takes are put together into as few runs as cover them all, and launched on two
gloo ranks for two steps. A pair that is told late (exit 2 after the plan) or ends a run otherwise is a failure.
"""

from __future__ import annotations

import argparse
import ctypes.util
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from dtrain.config.launchable import launch_refusals
from dtrain.config.load import loads
from dtrain.errors import BadInput, BadInputs
from dtrain.hardware.profiles import resolve_profile
from dtrain.models.hub import load_facts
from dtrain.planner.plan import make_plan
from tests.e2e.cli import Place
from tests.e2e.materials import stories, write_jsonl, write_model

Feature = tuple[str, str]
"""A name, and the YAML that asks for it."""

FEATURES: Mapping[str, tuple[str, ...]] = {
    "zero_stage": ("zero_stage: 0", "zero_stage: 1", "zero_stage: 2", "zero_stage: 3"),
    "precision": ("bf16: true",),
    "attention": ("attention: sdpa", "attention: eager", "attention: flex"),
    "sparse": (
        "attention_pattern: {kind: sliding, window: 16}",
        "attention_pattern: {kind: longformer, window: 16, global_tokens: 2}",
        "attention_pattern: {kind: bigbird, window: 16, global_tokens: 2, random_blocks: 1, block_tokens: 8}",
        "segment_memory: 32",
    ),
    "sequence_parallel": ("sequence_parallel_size: 2",),
    "tensor_parallel": ("tensor_parallel_size: 2",),
    "checkpointing": (
        "gradient_checkpointing: none", "gradient_checkpointing: full", "gradient_checkpointing: selective",
        "gradient_checkpointing: offload",
    ),
    "tiled_mlp": ("tiled_mlp: true",),
    "cross_entropy": ("cross_entropy: chunked", "cross_entropy: eager"),
    "packing": ("sample_packing: true",),
    "micro_batch": ("micro_batch_size: 1", "micro_batch_size: 3"),
    "accumulation": ("gradient_accumulation_steps: 2",),
    "adapter": (
        "adapter: lora", "adapter: lora\npeft_use_dora: true", "adapter: lora\npeft_use_rslora: true",
        "adapter: qlora\nload_in_4bit: true", "adapter: lora\nload_in_8bit: true",
    ),
    "offload_optimizer": ("offload_optimizer: cpu", "offload_optimizer: nvme\nnvme_path: drive"),
    "offload_params": ("offload_params: cpu", "offload_params: nvme\nnvme_path: drive"),
    "rope": ("rope_scaling: {type: yarn, factor: 2}", "rope_scaling: {type: dynamic, factor: 2}\nmicro_batch_size: 1"),
    "probe": ("probe: true",),
    "skipping": ("loss_watchdog_threshold: 100\nloss_watchdog_action: skip",),
}  # fmt: skip

YAML = """\
base_model: ./model
datasets: [{path: rows.jsonl, type: {field_instruction: synopsis, field_output: short_story}}]
val_set_size: 4
eval_steps: 2
sequence_len: 128
max_steps: 2
learning_rate: 1e-3
"""


@dataclass(frozen=True)
class Tried:
    """What became of one combination."""

    features: tuple[Feature, ...]
    outcome: str
    """plan, or trained: taken; refused: told with a key and a way out; anything else is a failure."""
    said: str = ""


def features() -> Iterator[Feature]:
    for name, ways in FEATURES.items():
        for way in ways:
            if "nvme" not in way or ctypes.util.find_library("aio"):
                yield name, way


def text_of(chosen: Sequence[Feature]) -> str:
    """`nvme_path` is one line, whoever asks for it."""
    lines = dict.fromkeys(line for _, way in chosen for line in way.splitlines())
    return YAML + "\n".join(lines) + "\n"


def planned(folder: Path, chosen: Sequence[Feature]) -> Tried:
    told = tuple(chosen)
    try:
        loaded = loads(text_of(chosen))
        refusals = launch_refusals(loaded)
        if refusals:
            raise BadInputs(refusals)
        make_plan(loaded, resolve_profile("cpu"), load_facts("./model", config_dir=folder))
    except BadInput as error:
        errors = error.errors if isinstance(error, BadInputs) else [error]
        whole = all(one.key and (one.fix or one.allowed) for one in errors)
        return Tried(told, "refused" if whole else "refused without a way out", str(error))
    except Exception as error:
        return Tried(told, "the plan crashed", f"{type(error).__name__}: {error}")
    return Tried(told, "plan")


def covering(folder: Path, pairs: Sequence[tuple[Feature, Feature]]) -> Iterator[tuple[Feature, ...]]:
    """Combinations that a plan takes, and that together hold every pair."""
    left = {frozenset(pair) for pair in pairs}
    known = list(features())
    while left:
        chosen = sorted(min(left, key=sorted))
        for one in sorted(known, key=lambda one: -_new(left, [*chosen, one])):
            if one[0] in {name for name, _ in chosen} or not _new(left, [*chosen, one], only=one):
                continue
            if planned(folder, [*chosen, one]).outcome == "plan":
                chosen.append(one)
        left -= {frozenset(pair) for pair in combinations(chosen, 2)}
        yield tuple(chosen)


def _new(left: set[frozenset[Feature]], chosen: Sequence[Feature], only: Feature | None = None) -> int:
    """Pairs that are not covered yet."""
    return sum(frozenset(pair) in left for pair in combinations(chosen, 2) if only is None or only in pair)


def launched(folder: Path, number: int, chosen: tuple[Feature, ...]) -> Tried:
    place = Place(folder)
    (folder / f"run-{number}.yaml").write_text(text_of(chosen) + f"output_dir: out-{number}\n")
    done = place.dtrain("launch", f"run-{number}.yaml", "--profile", "cpu", "--yes", timeout=600)
    if done.code == 0:
        return Tried(chosen, "trained")
    return Tried(chosen, f"exit {done.code}", (done.err + done.out)[-1500:])


def prepare(folder: Path) -> None:
    write_model(folder / "model")
    write_jsonl(folder / "rows.jsonl", stories(40))


def as_json(tried: Sequence[Tried]) -> list[dict[str, Any]]:
    return [{"features": [way for _, way in one.features], "outcome": one.outcome, "said": one.said} for one in tried]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.soak.features")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--at-once", type=int, default=1, help="Runs beside each other.")
    parser.add_argument("--plan-only", action="store_true")
    told = parser.parse_args(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        pairs = [pair for pair in combinations(features(), 2) if pair[0][0] != pair[1][0]]
        plans = [planned(folder, pair) for pair in pairs]
        taken = [(one.features[0], one.features[1]) for one in plans if one.outcome == "plan"]
        runs = [] if told.plan_only else list(covering(folder, taken))
        print(f"{len(pairs)} pairs, {len(taken)} planned, {len(runs)} runs", flush=True)
        with ThreadPoolExecutor(told.at_once) as pool:
            tried = []
            for one in pool.map(lambda item: launched(folder, *item), enumerate(runs)):
                tried.append(one)
                print(one.outcome, [way for _, way in one.features], one.said, flush=True)
    failures = [one for one in (*plans, *tried) if one.outcome not in ("plan", "refused", "trained")]
    for one in failures:
        print(f"FAILED: {one.outcome}: {[way for _, way in one.features]}: {one.said}", file=sys.stderr)
    if told.json:
        document = {
            "schema_version": 1, "seconds": round(time.monotonic() - started), "pairs": len(pairs),
            "planned": len(taken), "refused": sum(one.outcome == "refused" for one in plans), "runs": len(tried),
            "trained": sum(one.outcome == "trained" for one in tried), "failures": as_json(failures),
            "refusals": as_json([one for one in plans if one.outcome == "refused"]), "trained_sets": as_json(tried),
        }  # fmt: skip
        told.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
