"""Low-rank adapters (LoRA, rsLoRA, DoRA, QLoRA) through peft: injected in place, trained and written alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dtrain.config.schema import Config
from dtrain.errors import BadInput, RunFailed
from dtrain.files import read_json
from dtrain.train import own_attention, shards

COMMON_TARGETS = ("q_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv")
"""Where a file names no targets: peft's own defaults for most families (peft/utils/constants.py)."""


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
    from transformers import AutoModelForCausalLM

    told = own_attention.honoured(folder)
    return on_base(AutoModelForCausalLM.from_pretrained(base_of(folder), dtype=dtype, **told), folder)


def on_base(base: Any, folder: Path, **told: Any) -> Any:
    """peft's model. Its warnings are of transformers' names, and of a key of ours that it passes by."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", f"Unexpected keyword arguments.*{own_attention.KEY}")
        return PeftModel.from_pretrained(base, str(folder), **told)


PREFIX = "base_model.model."
"""Of names in a file of peft's."""


def name_on_disk(parameter: str) -> str:
    """A trained parameter's name in peft's file: without peft's name of the adapter, and a magnitude's `.weight`."""
    name = parameter.removeprefix(PREFIX).replace(".modules_to_save.default", "").replace(".default", "")
    return PREFIX + name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")


def compare(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Read an adapter's file back: RunFailed unless it has these weights, bit for bit. The base stays where it is."""
    wanted = {name_on_disk(name): tensor for name, tensor in weights.items()}
    file = folder / "adapter_model.safetensors"
    with safe_open(file, framework="pt") as handle:
        missing = sorted(wanted.keys() - set(handle.keys()))
    if missing:
        raise RunFailed(
            f"the exported adapter does not hold all that was trained: {missing[:5]}", file=str(file),
            fix="the checkpoint is untouched; report this",
        )  # fmt: skip
    shards.compare(file, wanted)


def base_of(folder: Path) -> str:
    """The folder or hub name of the model that an adapter lies on."""
    return str(read_json(folder / "adapter_config.json")["base_model_name_or_path"])


def without_weights(name: str) -> Any:
    """A model in fp32 whose buffers are real and whose weights take no memory."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name), dtype=torch.float32)
