"""The whole `dtrain` command in a person's folder, for runs elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODEL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip


class Typed:
    """The `dtrain` command as a person types it in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "dtrain", *words], cwd=self.folder, capture_output=True, text=True, timeout=600,
            env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code))

    def wait(self, run: str, holds: Any) -> Any:
        deadline = time.monotonic() + 600
        while True:
            told = self.json("status", run)
            if holds(told):
                return told
            assert told["state"] in ("running", "pending"), told
            assert time.monotonic() < deadline, told
            time.sleep(0.5)
