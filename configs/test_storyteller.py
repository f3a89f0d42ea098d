"""The course's last lesson, repaired: load the trained model with transformers alone, and let it tell a story.

    python configs/test_storyteller.py FOLDER "A baker finds a lost dog. A story of Emil in Gullhaven."

FOLDER is a run's output folder (`dtrain runs` lists them) or any Hugging Face model folder. Runs on a GPU if there is
one, else on the CPU. The prompt is written as the model was trained to read it: the form stands in FOLDER/dtrain.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

SEED_FORM = "<|user|> {instruction} </s>\n<|assistant|>"
"""`no_input_format` of configs/storyteller.yaml, for a folder that no longer has its run beside it."""


def prompt_form(folder: Path) -> str:
    """How the run wrote its prompts: `no_input_format` of its first dataset."""
    config = folder / "dtrain" / "config.yaml"
    if not config.exists():
        return SEED_FORM
    kind = yaml.safe_load(config.read_text(encoding="utf-8"))["datasets"][0]["type"]
    return str(kind["no_input_format"]) if isinstance(kind, dict) else "{instruction}"


def tell(folder: Path, synopsis: str, max_new_tokens: int = 512) -> str:
    """The likeliest story for a synopsis, without the prompt."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device).eval()
    prompt = tokenizer(prompt_form(folder).format(instruction=synopsis), return_tensors="pt").to(device)
    room = model.config.max_position_embeddings - prompt["input_ids"].shape[1]
    written = model.generate(
        input_ids=prompt["input_ids"],
        attention_mask=prompt["attention_mask"],
        max_new_tokens=min(max_new_tokens, room),
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return str(tokenizer.decode(written[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


if __name__ == "__main__":
    if len(sys.argv) != 3 or not (Path(sys.argv[1]) / "config.json").exists():
        sys.exit(f'usage: python {sys.argv[0]} FOLDER "SYNOPSIS", where FOLDER holds a trained model (config.json)')
    print(tell(Path(sys.argv[1]), sys.argv[2]))
