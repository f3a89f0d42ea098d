"""What a plan decided, as a DeepSpeed config would say it."""

from __future__ import annotations

from dtrain.config.deepspeed_file import AutoValues
from dtrain.config.schema import Config
from dtrain.planner.choice import Choice


def auto_values(config: Config, choice: Choice, hidden_size: int | None) -> AutoValues:
    """All that is known before the rows are counted: not the schedule's steps."""
    return AutoValues(
        micro_batch_size=choice.micro_batch_size, gradient_accumulation_steps=choice.gradient_accumulation_steps,
        train_batch_size=choice.global_batch_size, max_grad_norm=config.max_grad_norm,
        learning_rate=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon,
        weight_decay=config.weight_decay, bf16=choice.precision == "bf16", fp16=choice.precision == "fp16",
        hidden_size=hidden_size,
    )  # fmt: skip
