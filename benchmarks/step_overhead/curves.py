"""Loss curves of dtrain and TRL over the same rows: alpaca and messages, accumulation 1 and 4.

Each side reads the raw rows by itself, renders, tokenises, masks, batches and trains. What must agree for the curves to
agree is `AGREED`; everything else is each side's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.step_overhead.trials import ROOT, free_port
from dtrain.data.formats import ALPACA

STEPS = 30
MICRO_BATCH_SIZE = 4
STORIES = ROOT / "configs" / "storyteller_tiny.jsonl"
WINDOW = 512
SYSTEM = "You tell short stories."
FOLLOW_UP = ("Thank you. Once more, please.", "Gladly: ")

AGREED = {
    "initial weights": "one saved model, loaded by both in fp32 (TRL's SFTConfig says bf16)",
    "attention": "sdpa on both sides; documents of a batch never see each other",
    "order of rows": "file order (dtrain `shuffle: false`; TRL train_sampling_strategy=sequential)",
    "window": "longer than every row, so neither side drops (dtrain) or cuts (TRL) any",
    "tokens at the border of prompt and answer": "dtrain tokenises both apart, TRL together: a prompt that ends in a "
    "newline and an answer that starts with a letter give the same ids under a byte-level BPE",
    "end token": "trained on both sides: EOS after an alpaca answer, <|im_end|> of an assistant's turn",
    "beginning token": "the tokenizer adds none, so neither side has one",
    "trained tokens": "the answers (dtrain's default; TRL completion_only_loss for prompt and completion, "
    "assistant_only_loss with {% generation %} marks in the template for messages)",
    "normalisation": "sum over the step's trained tokens, over all micro-batches, divided by their number (both by "
    "themselves; TRL through num_items_in_batch)",
    "learning rate": "cosine to zero over 30 steps after 3 warm-up steps, the first of which has rate 0 (SFTConfig "
    "says linear)",
    "optimizer": "torch's AdamW, betas 0.9 and 0.999, epsilon 1e-8",
    "weight decay": "0.1, not on norms and biases",
    "clipping": "global norm 1.0, before each step",
    "dropout": "the model has none",
    "gradient checkpointing": "off (SFTConfig says on); it would not move the loss",
}


@dataclass(frozen=True)
class Curve:
    kind: str
    """alpaca or messages."""
    accumulation: int

    @property
    def name(self) -> str:
        return f"{self.kind}, accumulation {self.accumulation}"


CURVES = tuple(Curve(kind, accumulation) for kind in ("alpaca", "messages") for accumulation in (1, 4))

SETTINGS = {
    "learning_rate": 1e-3, "warmup_steps": 3, "weight_decay": 0.1, "max_grad_norm": 1.0, "adam_beta1": 0.9,
    "adam_beta2": 0.999, "adam_epsilon": 1e-8,
}  # fmt: skip


@dataclass(frozen=True)
class Compared:
    curve: Curve
    dtrain: Sequence[float]
    trl: Sequence[float]
    differing_rows: int
    """Rows whose ids or labels the two sides made differently."""

    @property
    def largest_difference(self) -> float:
        return max(abs(a - b) for a, b in zip(self.dtrain, self.trl, strict=True))

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self.curve), "steps": len(self.dtrain), "largest_difference": self.largest_difference,
            "differing_rows": self.differing_rows, "first_loss": self.dtrain[0], "last_loss": self.dtrain[-1],
            "dtrain": list(self.dtrain), "trl": list(self.trl),
        }  # fmt: skip


def write_rows(folder: Path, stories: Sequence[dict[str, str]]) -> None:
    """alpaca.jsonl and messages.jsonl, every third row with an input, a system prompt, or a second turn."""
    for kind, make in (("alpaca", alpaca_row), ("messages", messages_row)):
        lines = [json.dumps(make(index, story), ensure_ascii=False) for index, story in enumerate(stories)]
        (folder / f"{kind}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def alpaca_row(index: int, story: dict[str, str]) -> dict[str, str]:
    told = {"instruction": story["synopsis"], "input": "", "output": story["short_story"]}
    return told if index % 3 else {**told, "instruction": "Tell this story.", "input": story["synopsis"]}


def messages_row(index: int, story: dict[str, str]) -> dict[str, Any]:
    turns = [("user", story["synopsis"]), ("assistant", story["short_story"])]
    if index % 3 == 1:
        turns = [("system", SYSTEM), *turns]
    if index % 3 == 2:
        turns = [*turns, ("user", FOLLOW_UP[0]), ("assistant", FOLLOW_UP[1] + story["synopsis"])]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def trl_row(kind: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row as TRL wants it: a prompt and a completion, or the messages as they are."""
    if kind == "messages":
        return row
    template = ALPACA.format if row["input"] else ALPACA.no_input_format
    return {"prompt": template.format(**row), "completion": row["output"]}


def differing(ours: dict[str, list[list[int]]], theirs: dict[str, list[list[int]]], rows: int) -> int:
    """Of the first `rows` rows, those whose ids or trained labels differ. The first label is nobody's next token."""
    return sum(
        ours["input_ids"][row] != theirs["input_ids"][row] or ours["labels"][row][1:] != theirs["labels"][row][1:]
        for row in range(rows)
    )


def compare(folder: Path, trl_python: Path) -> list[Compared]:
    """Both sides' curves, made in `folder`."""
    stories = [json.loads(line) for line in STORIES.read_text(encoding="utf-8").splitlines()]
    write_rows(folder, stories[: STEPS * MICRO_BATCH_SIZE * 4])
    sides = {}
    for side, python in (("dtrain", Path(sys.executable)), ("trl", trl_python)):
        _call(python, f"benchmarks.step_overhead.curve_{side}", folder)
        sides[side] = json.loads((folder / f"{side}.json").read_text())
    return [compared(curve, sides["dtrain"][curve.name], sides["trl"][curve.name]) for curve in CURVES]


def compared(curve: Curve, ours: dict[str, Any], theirs: dict[str, Any]) -> Compared:
    rows = STEPS * MICRO_BATCH_SIZE * curve.accumulation
    return Compared(curve, ours["losses"], theirs["losses"], differing(ours, theirs, rows))


def _call(python: Path, module: str, folder: Path) -> None:
    environment = os.environ | {
        "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    command = [str(python), "-m", module, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-6000:]}")
    print(f"  {module.rsplit('.', 1)[1]}: done", file=sys.stderr, flush=True)
