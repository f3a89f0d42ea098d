"""Low-rank adapters (LoRA, rsLoRA, DoRA, QLoRA) through peft: injected in place, trained and written alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dtrain.config.schema import Config
from dtrain.errors import BadInput, RunFailed

COMMON_TARGETS = ("q_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv")
"""Where a file names no targets: peft's own defaults for most families (peft/utils/constants.py)."""


LARGEST_MERGE_CHANGE = 1e-3
"""Of a logit, relative to the spread of all: fp32 rounding gives 1e-6, a wrong merge gives 1."""


def quantization(config: Config, compute: torch.dtype) -> Any:
    """transformers' description of a base in 4 bits (QLoRA) or 8 (LLM.int8); None where the base stays whole."""
    if not config.load_in_4bit and not config.load_in_8bit:
        return None
    from transformers import BitsAndBytesConfig

    if config.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=config.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=compute,
    )


def add(model: Any, config: Config, checkpointed: bool) -> None:
    """Inject adapters; from here on only they (and `lora_modules_to_save`) are trained. The same draw on every rank."""
    from peft import LoraConfig

    torch.manual_seed(config.seed)
    model.add_adapter(
        LoraConfig(
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=targets(model, config),
            modules_to_save=config.lora_modules_to_save,
            use_rslora=config.peft_use_rslora,
            use_dora=config.peft_use_dora,
            bias="none",
            task_type="CAUSAL_LM",
        )
    )
    if checkpointed:
        model.enable_input_require_grads()  # a checkpointed block whose input needs no gradient would give none


def targets(model: Any, config: Config) -> list[str]:
    """Names of linear modules that get an adapter. BadInput with the nearest for a name that matches nothing."""
    head = model.get_output_embeddings()
    linears = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if (module is not head and "Linear" in type(module).__name__) or type(module).__name__ == "Conv1D"
    }
    asked = config.lora_target_modules
    said = [asked] if isinstance(asked, str) else list(asked or ())
    if config.lora_target_linear or "all-linear" in said:
        return sorted(linears)
    unknown = [name for name in said if name not in linears]
    if unknown:
        raise BadInput(
            "no linear layer of this model has this name", key="lora_target_modules", value=unknown[0],
            allowed=sorted(linears), fix=_nearest(unknown[0], linears),
        )  # fmt: skip
    return said or [name for name in COMMON_TARGETS if name in linears] or sorted(linears)


def _nearest(name: str, linears: set[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, linears, n=1)
    return f"did you mean {near[0]}?" if near else "lora_target_linear: true adapts every linear layer"


@contextmanager
def evaluating(forward: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside. 4-bit layers stay in training mode: on a CPU, bitsandbytes repacks
    their weights for inference at the first evaluation, and from then on their gradients are zero, in silence."""
    was_training = forward.training
    forward.eval()
    for module in forward.modules():
        if type(module).__name__ == "Linear4bit":
            module.training = True
    try:
        with torch.no_grad():
            yield
    finally:
        forward.train(was_training)


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def read(folder: Path, dtype: Any = "auto") -> Any:
    """The base model with the adapter of `folder` on it, by peft: transformers alone misses DoRA's magnitudes."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(
        PeftConfig.from_pretrained(str(folder)).base_model_name_or_path, dtype=dtype
    )
    return PeftModel.from_pretrained(base, str(folder))


def merge(adapter: Path, out: Path) -> float:
    """Write the full-precision base with the adapter merged into it. Returns the largest change of a logit, relative
    to their spread, between adapter and merged model on a probe of 32 tokens; RunFailed where it is not small.

    Merged in fp32, whatever the run's precision: a 16-bit or 4-bit merge rounds the adapter away (peft#2321).
    """
    from peft import PeftConfig
    from transformers import AutoConfig, AutoTokenizer

    stored = AutoConfig.from_pretrained(PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path).dtype
    tuned = read(adapter, torch.float32).eval()
    ids = torch.arange(32)[None] % tuned.config.get_text_config().vocab_size
    with torch.no_grad():
        before = tuned(input_ids=ids).logits
        merged = tuned.merge_and_unload()
        after = merged(input_ids=ids).logits
    change = float((after - before).abs().max() / before.std())
    if not change < LARGEST_MERGE_CHANGE:  # also NaN
        raise RunFailed(f"merging changes the logits by {change:.2%} of their spread", file=str(out))
    merged.to(stored or torch.float32).save_pretrained(out)
    AutoTokenizer.from_pretrained(adapter).save_pretrained(out)
    return change
