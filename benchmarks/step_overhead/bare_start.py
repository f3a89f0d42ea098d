"""The shortest DeepSpeed program that makes one step: `torchrun -m benchmarks.step_overhead.bare_start MODEL OUT`.

Writes the time its first optimizer step was done into the file OUT, as `time.time()`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import deepspeed
import torch
from transformers import AutoConfig, AutoModelForCausalLM

ROWS, TOKENS = 2, 512


def main(model_folder: str, out: str) -> None:
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_folder), dtype=torch.float32)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-4),
        config={
            "train_micro_batch_size_per_gpu": ROWS, "gradient_clipping": 1.0, "zero_optimization": {"stage": 2},
            "zero_allow_untested_optimizer": True, "steps_per_print": 2**31,
        },
    )  # fmt: skip
    ids = torch.randint(0, model.config.vocab_size, (ROWS, TOKENS))
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()
    if torch.distributed.get_rank() == 0:
        Path(out).write_text(str(time.time()))


if __name__ == "__main__":
    main(*sys.argv[1:])
