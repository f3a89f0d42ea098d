"""A trained model writes: prompts take the form it was trained on, and it stops where it was taught to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dtrain.config.schema import Config, PromptFormat
from dtrain.data.formats import ALPACA, with_bos
from dtrain.data.tokenizer import Encoder
from dtrain.errors import BadInput
from dtrain.train import adapters, own_attention


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int = 128
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    prompt: str
    text: str
    tokens: int
    stopped: bool
    """Ended by a stop token, not by `max_new_tokens`."""


def read_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def read_model(folder: Path) -> Any:
    """The model of a folder in its own precision, on a GPU if there is one (fp32 on a CPU, where 16 bit is slow)."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    dtype = "auto" if device.type == "cuda" else torch.float32
    told = own_attention.honoured(folder)
    model = (
        adapters.read(folder, dtype)
        if adapters.is_adapter(folder)
        else AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **told)
    )
    if told:  # a pattern is of whole rows: keys of earlier tokens alone do not tell what a new one sees
        model.generation_config.use_cache = False
    return model.to(device).eval()


def prompt_ids(config: Config | None, tokenizer: Any, said: str) -> list[int]:
    """`said` in the run's first dataset's form; without a config, as a chat where the tokenizer has a template, else
    as plain text."""
    encoder = Encoder.of(tokenizer)
    how = config.datasets[0] if config is not None else None
    kind: Any = how.type if how is not None else ("chat_template" if tokenizer.chat_template else "completion")
    ids = encoder.encode([_prompt_text(kind, tokenizer, said)])[0]
    return ids if kind == "chat_template" else with_bos(ids, encoder)  # a chat template writes its own BOS


def _prompt_text(kind: PromptFormat | str, tokenizer: Any, said: str) -> str:
    if kind == "alpaca":
        kind = ALPACA
    if isinstance(kind, PromptFormat):
        system = kind.system_format.format(system=kind.system_prompt) if kind.system_prompt else ""
        return system + kind.no_input_format.format(instruction=said)
    if kind == "chat_template" and tokenizer.chat_template:
        turns = [{"role": "user", "content": said}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    return said


@torch.inference_mode()
def write(model: Any, tokenizer: Any, ids: Sequence[int], prompt: str, sampling: Sampling) -> Sample:
    """Continue `ids` until a stop token or `max_new_tokens`."""
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and len(ids) >= room:
        raise BadInput(f"the prompt has {len(ids)} tokens, the model holds {room}", key="prompt", fix="shorten it")
    torch.manual_seed(sampling.seed)
    drawn = (
        {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
        if sampling.temperature > 0
        else {"do_sample": False}
    )
    most = sampling.max_new_tokens if room is None else min(sampling.max_new_tokens, room - len(ids))
    tensor = torch.tensor([list(ids)], device=model.device)
    out = model.generate(
        tensor, attention_mask=torch.ones_like(tensor), max_new_tokens=most,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id, **drawn,
    )[0].tolist()[len(ids) :]  # fmt: skip
    stops = model.generation_config.eos_token_id
    stopped = bool(out) and out[-1] in ([stops] if isinstance(stops, int) else stops or [])
    return Sample(prompt, tokenizer.decode(out, skip_special_tokens=True).strip(), len(out), stopped)


def samples(config: Config, folder: Path) -> list[dict[str, Any]]:
    """What the model in `folder` writes for the run's `sample_prompts`."""
    if not config.sample_prompts:
        return []
    model, tokenizer = read_model(folder), read_tokenizer(folder)
    sampling = Sampling(config.sample_max_new_tokens)
    told = [
        write(model, tokenizer, prompt_ids(config, tokenizer, said), said, sampling) for said in config.sample_prompts
    ]
    return [{"prompt": one.prompt, "text": one.text, "tokens": one.tokens, "stopped": one.stopped} for one in told]
