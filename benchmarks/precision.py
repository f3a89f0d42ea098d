"""Precisions and optimizers on two CPU ranks, planned beside measured: `python -m benchmarks.precision`.

Each line of the table is a real `dtrain launch` of a Llama of 0.9 million parameters on windows of 64 tokens, so that
weights, gradients and states are nearly all there is. Times are the fastest of its steps: a busy machine slows some.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STEPS = 12
TEXT = f"""\
base_model: {ROOT / "configs/tiny_llama"}
reinit_weights: true
train_tokenizer: {{vocab_size: 2048}}
datasets: [{{path: {ROOT / "configs/storyteller_tiny.jsonl"}, type: completion, field: short_story}}]
sequence_len: 64
excess_length_strategy: truncate
micro_batch_size: 1
gradient_checkpointing: none
learning_rate: 1e-3
max_steps: {STEPS}
logging_steps: 1
save_steps: 1000
"""
BF16 = ("bf16=true",)
SETTINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("fp32, adamw_torch, ZeRO 2", ("zero_stage=2",)),
    ("bf16, adamw_torch, ZeRO 2", (*BF16, "zero_stage=2")),
    ("bf16, adamw_torch, ZeRO 1", (*BF16, "zero_stage=1")),
    ("bf16, master_weights: bf16, ZeRO 2", (*BF16, "zero_stage=2", "master_weights=bf16")),
    ("bf16, muon, ZeRO 1", (*BF16, "zero_stage=1", "optimizer=muon")),
    ("fp32, adamw_torch_fused, ZeRO 2", ("zero_stage=2", "optimizer=adamw_torch_fused")),
    ("fp32, adamw_bnb_8bit, ZeRO 2", ("zero_stage=2", "optimizer=adamw_bnb_8bit")),
    ("fp32, lion_32bit, ZeRO 2", ("zero_stage=2", "optimizer=lion_32bit")),
    ("fp32, lion_8bit, ZeRO 2", ("zero_stage=2", "optimizer=lion_8bit")),
    ("fp32, sgd, ZeRO 2", ("zero_stage=2", "optimizer=sgd")),
    ("fp32, adafactor, ZeRO 0", ("zero_stage=0", "optimizer=adafactor")),
    ("fp32, muon, ZeRO 0", ("zero_stage=0", "optimizer=muon")),
)


def measured(settings: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Peaks in MiB of the fuller rank, seconds of the fastest step."""
    file, run = folder / "run.yaml", folder / "run"
    file.write_text(TEXT)
    told = [word for one in (*settings, f"output_dir={run}") for word in ("--set", one)]
    command = [sys.executable, "-m", "dtrain", "launch", str(file), "--profile", "cpu", "--yes", *told]
    env = os.environ | {"DTRAIN_HOME": str(folder / "home")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(settings)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    lines = [json.loads(line) for line in (run / "dtrain/metrics.jsonl").read_text().splitlines() if line]
    plan = json.loads((run / "dtrain/plan.json").read_text())
    return {
        "planned_mib": 1024 * plan["memory_gib"]["peak_allocated"],
        "measured_mib": 1024 * max(line["allocated_gib"] for line in lines),
        "states_mib": 1024 * next(one["terms"]["optimizer"] for one in plan["phases"]),
        "step_seconds": min(line["step_seconds"] for line in lines[3:]),  # the first two are watched
    }


def main() -> None:
    print(f"| | optimizer's states | peak planned | peak measured | step |\n|---|{'---:|' * 4}")
    for name, settings in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            row = measured(settings, Path(folder))
        cells = [f"{row[key]:.1f} MiB" for key in ("states_mib", "planned_mib", "measured_mib")]
        print(f"| {name} | {' | '.join(cells)} | {1000 * row['step_seconds']:.0f} ms |", flush=True)


if __name__ == "__main__":
    main()
