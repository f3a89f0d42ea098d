"""TRL's side of the loss curves: `python -m benchmarks.step_overhead.curve_trl FOLDER` writes trl.json.

Runs in the benchmark's own environment, after `curve_dtrain`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.step_overhead.curves import CURVES, MICRO_BATCH_SIZE, SETTINGS, STEPS, WINDOW, Curve, trl_row

CHATML_WITH_MARKS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, with TRL's marks around what the assistant says and the token that ends it."""


def losses_of(folder: Path, curve: Curve) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    lines = (folder / f"{curve.kind}.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer = AutoTokenizer.from_pretrained(folder / f"tokenizer-{curve.kind}")
    if curve.kind == "messages":
        tokenizer.chat_template = CHATML_WITH_MARKS
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="sdpa")
    with tempfile.TemporaryDirectory() as output:
        trainer = SFTTrainer(
            model=model, processing_class=tokenizer,
            train_dataset=Dataset.from_list([trl_row(curve.kind, json.loads(line)) for line in lines]),
            args=SFTConfig(
                output_dir=output, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
                save_strategy="no", disable_tqdm=True, max_length=WINDOW, max_steps=STEPS, logging_steps=1,
                per_device_train_batch_size=MICRO_BATCH_SIZE, gradient_accumulation_steps=curve.accumulation,
                train_sampling_strategy="sequential", assistant_only_loss=curve.kind == "messages",
                optim="adamw_torch", lr_scheduler_type="cosine", **SETTINGS,
            ),
        )  # fmt: skip
        trainer.train()
    return {
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
        "input_ids": [list(ids) for ids in trainer.train_dataset["input_ids"]],
        "labels": [list(labels) for labels in trainer.train_dataset["labels"]],
    }


def main(folder: Path) -> None:
    told = {curve.name: losses_of(folder, curve) for curve in CURVES}
    (folder / "trl.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
