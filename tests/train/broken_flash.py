"""A run's attention with a broken flash-attn on the path, in a process that believes to have a GPU.

python -m tests.train.broken_flash FOLDER; prints why flash_attention_2 is passed over, for each way to be broken
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

torch.cuda.is_available = lambda: True

BROKEN = {
    "cannot be imported": 'raise ImportError("libcudart.so.11.0: cannot open shared object file")',
    "built for another torch": 'raise OSError("flash_attn_2_cuda.so: undefined symbol: _ZN3c104cuda9SetDeviceEi")',
    "another version": '__version__ = "1.0.9"',
    "another GPU": 'def flash_attn_varlen_func(*a, **k): raise RuntimeError("only supports Ampere GPUs or newer")',
    "wrong numbers": "def flash_attn_varlen_func(q, k, v, *a, **told): return q + k + v",
}


def install(folder: Path, source: str) -> None:
    """As pip leaves it: the module and its metadata."""
    package, about = folder / "flash_attn", folder / "flash_attn-2.8.3.dist-info"
    package.mkdir(parents=True)
    about.mkdir()
    (package / "__init__.py").write_text(source + "\n")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: flash-attn\nVersion: 2.8.3\n")


def attend() -> str:
    """The back end transformers is given, after a forward pass with it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from dtrain.train import attention
    from dtrain.train.model import implementation

    attention.register()
    described = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    described._attn_implementation = implementation(described, "sdpa")
    LlamaForCausalLM(described)(input_ids=torch.arange(8)[None])
    return str(described._attn_implementation)


def main(folder: Path) -> None:
    from dtrain.train import attention_choice

    cpu, wrong_numbers = torch.device("cpu"), attention_choice._wrong_numbers
    attention_choice._wrong_numbers = lambda kernel, device, dtype: wrong_numbers(kernel, cpu, dtype)
    told: dict[str, str | None] = {}
    for number, (how, source) in enumerate(BROKEN.items()):
        install(folder / str(number), source)
        sys.path.insert(0, str(folder / str(number)))
        sys.modules.pop("flash_attn", None)
        if number == 0:
            told["attends with"] = attend()
        told[how] = attention_choice.why_not("flash_attention_2", torch.device("cuda"), torch.bfloat16)
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
