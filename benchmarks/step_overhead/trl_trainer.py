"""TRL's SFTTrainer on the same rows. Needs the benchmark's own environment (benchmarks/README.md)."""

from __future__ import annotations

import tempfile
from typing import Any

from benchmarks.step_overhead import workload as settings
from benchmarks.step_overhead.workload import Workload

MODES: dict[str, dict[str, Any]] = {
    "default": {"bf16": True, "gradient_checkpointing": True},
    "padded": {},
    "packing": {"packing": True},
    "padding_free": {"padding_free": True},
}
"""`default` is what SFTConfig says by itself; the others run in fp32 without checkpointing, as everybody here."""


def run(workload: Workload, options: dict[str, Any], start_clock: settings.StartClock) -> None:
    from datasets import concatenate_datasets
    from transformers import TrainerCallback
    from trl import SFTTrainer

    packing = options["mode"] == "packing"
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=workload.model(),
            args=arguments(folder, workload, options["mode"]),
            train_dataset=dataset(workload),
            processing_class=word_tokenizer(workload),
        )
        units, size = len(trainer.train_dataset), workload.windows_per_step if packing else workload.rows_per_step
        # one long epoch, as a real run has, in which each stretch of `steps` holds every row once
        trainer.train_dataset = concatenate_datasets([trainer.train_dataset] * 200)
        clock = start_clock(-(-units // size))

        class Ticks(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.tick()

        trainer.add_callback(Ticks())
        trainer.train()


def arguments(folder: str, workload: Workload, mode: str) -> Any:
    from trl import SFTConfig

    told: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False, **MODES[mode]}
    return SFTConfig(
        output_dir=folder, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        per_device_train_batch_size=workload.windows_per_step if mode == "packing" else workload.rows_per_step,
        max_length=None if mode == "padding_free" else workload.window, max_steps=10_000,
        train_sampling_strategy="sequential", learning_rate=settings.LEARNING_RATE, lr_scheduler_type="constant",
        weight_decay=settings.WEIGHT_DECAY, max_grad_norm=settings.MAX_GRAD_NORM, optim=settings.OPTIMIZER,
        logging_steps=settings.LOGGING_STEPS, seed=workload.seed, **told,
    )  # fmt: skip


def dataset(workload: Workload) -> Any:
    """The rows in the order of `random_batches`."""
    from datasets import Dataset

    rows = workload.token_rows
    order = [row for batch in workload.random_batches for row in batch]
    return Dataset.from_dict({
        "input_ids": [rows.ids(row).tolist() for row in order],
        "labels": [rows.labels(row).tolist() for row in order],
    })  # fmt: skip


def word_tokenizer(workload: Workload) -> Any:
    """Never used for text; SFTTrainer wants one with a pad token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": settings.PAD_ID, "</s>": 1} | {f"w{index}": index for index in range(2, workload.vocabulary)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), pad_token="<pad>", eos_token="</s>"
    )
