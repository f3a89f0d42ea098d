"""A DeepSpeed config (`deepspeed:`): what it pins, and its "auto" values.

"auto" is no feature of DeepSpeed's: transformers' Trainer fills it (integrations/deepspeed.py), and so do we, by the
same table. A value that is not "auto" and disagrees with the YAML is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from dtrain.config.schema import Config
from dtrain.errors import BadInput, BadInputs

Offload = Literal["none", "cpu", "nvme"]


@dataclass(frozen=True)
class DeepspeedFile:
    """A DeepSpeed config and what it pins; None: it leaves that to the planner."""

    zero_stage: int | None
    offload_optimizer: Offload | None
    offload_params: Offload | None
    document: Mapping[str, Any]


def of(config: Config) -> DeepspeedFile | None:
    """The DeepSpeed config of a loaded Config (loading has read the file: it is a mapping), or None."""
    return None if not isinstance(config.deepspeed, dict) else pins(config.deepspeed)


def pins(document: Mapping[str, Any]) -> DeepspeedFile:
    """What a DeepSpeed config says about sharding. No `zero_optimization` is stage 0, no offload section is none."""
    zero = document.get("zero_optimization")
    zero = zero if isinstance(zero, Mapping) else {}
    stage = zero.get("stage", 0)
    return DeepspeedFile(
        zero_stage=stage if type(stage) is int and 0 <= stage <= 3 else None,
        offload_optimizer=_device(zero, "offload_optimizer"),
        offload_params=_device(zero, "offload_param"),
        document=document,
    )


def _device(zero: Mapping[str, Any], section: str) -> Offload | None:
    inside = zero.get(section)
    device = inside.get("device", "none") if isinstance(inside, Mapping) else "none"
    return cast(Offload, device) if device in ("none", "cpu", "nvme") else None


# --- "auto" -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AutoValues:
    """What a run really uses, for the "auto" values of a DeepSpeed config. None: not known here, left to DeepSpeed."""

    micro_batch_size: int
    gradient_accumulation_steps: int
    train_batch_size: int
    """Sequences per optimizer step over all ranks."""
    max_grad_norm: float
    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    bf16: bool
    fp16: bool
    warmup_steps: int | None = None
    total_steps: int | None = None
    hidden_size: int | None = None


def fill_auto(document: Mapping[str, Any], values: AutoValues) -> dict[str, Any]:
    """The document with every "auto" filled. BadInputs with each value that disagrees with the config."""
    filled, errors = _filled(document, values)
    if errors:
        raise BadInputs(errors)
    return filled


def disagreements(document: Mapping[str, Any], values: AutoValues) -> list[BadInput]:
    """What `fill_auto` will say, as far as it is known before the rows are counted."""
    return [error for error in _filled(document, values)[1] if error.key not in _OF_THE_SCHEDULE]


def _filled(document: Mapping[str, Any], values: AutoValues) -> tuple[dict[str, Any], list[BadInput]]:
    filled: dict[str, Any] = json.loads(json.dumps(document))
    expected = _expected(values)
    for key, value in expected.items():
        around, last = _around(filled, key)
        if around is not None and around.get(last) == "auto":
            _fill(around, last, value)
    errors = mismatches(filled, {key: value for key, value in expected.items() if key not in _FREE})
    return filled, errors + [_left_auto(key) for key in _autos(filled, "")]


def mismatches(document: Mapping[str, Any], expected: Mapping[str, Any]) -> list[BadInput]:
    """An error for each value of the document that is neither "auto" nor what is expected (by dotted key)."""
    found = []
    for key, value in expected.items():
        around, last = _around(document, key)
        if around is not None and last in around and around[last] != "auto" and not _agree(around[last], value):
            found.append(_mismatch(key, around[last], value))
    return found


def said_in(config: Config) -> dict[str, Any]:
    """What the config alone says about a DeepSpeed document, by dotted key: known before anything is planned."""
    low = config.master_weights == "bf16"
    return {
        **dict.fromkeys(_MASTERS, low),
        **({_SUMS: "bf16"} if low else {}),
        "gradient_clipping": config.max_grad_norm,
        "optimizer.params.lr": config.learning_rate,
        "optimizer.params.betas": [config.adam_beta1, config.adam_beta2],
        "optimizer.params.eps": config.adam_epsilon,
        "optimizer.params.weight_decay": config.weight_decay,
        "scheduler.params.warmup_max_lr": config.learning_rate,
        "optimizer.type": _optimizer_type(config.optimizer),
        "scheduler.type": _SCHEDULER_TYPES.get(config.lr_scheduler),
    }


def _optimizer_type(optimizer: str) -> str | None:
    """Our optimizer as DeepSpeed calls it (deepspeed/runtime/config.py); None: it has none like it."""
    types = {"adamw": "AdamW", "lion": "Lion", "muon": "Muon", "sgd": "SGD"}
    return next((name for kind, name in types.items() if kind in optimizer.split("_")), None)


_MASTERS, _SUMS = ("bf16.bf16_master_weights_and_grads", "bf16.bf16_optimizer_states"), "data_types.grad_accum_dtype"
_SCHEDULER_TYPES = {"linear": "WarmupDecayLR", "constant_with_warmup": "WarmupLR", "cosine": "WarmupCosineLR"}
"""Our schedules as DeepSpeed calls them (deepspeed/runtime/lr_schedules.py). dtrain's own one runs."""


def _expected(values: AutoValues) -> dict[str, Any]:
    """Dotted key of the document → its value: transformers 5.23 integrations/deepspeed.py, trainer_config_process."""
    hidden = values.hidden_size
    return {
        "train_micro_batch_size_per_gpu": values.micro_batch_size,
        "gradient_accumulation_steps": values.gradient_accumulation_steps,
        "train_batch_size": values.train_batch_size,
        "gradient_clipping": values.max_grad_norm,
        "optimizer.params.lr": values.learning_rate,
        "optimizer.params.betas": list(values.betas),
        "optimizer.params.eps": values.eps,
        "optimizer.params.weight_decay": values.weight_decay,
        "scheduler.params.warmup_min_lr": 0,
        "scheduler.params.warmup_max_lr": values.learning_rate,
        "scheduler.params.warmup_num_steps": values.warmup_steps,
        "scheduler.params.total_num_steps": values.total_steps,
        "bf16.enabled": values.bf16,
        "fp16.enabled": values.fp16,
        "zero_optimization.reduce_bucket_size": hidden and hidden * hidden,
        "zero_optimization.stage3_prefetch_bucket_size": hidden and int(0.9 * hidden * hidden),
        "zero_optimization.stage3_param_persistence_threshold": hidden and 10 * hidden,
    }


_FREE = {
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
}
"""Filled where "auto"; any other value is as good."""

_OF_THE_SCHEDULE = {"deepspeed.scheduler.params.warmup_num_steps", "deepspeed.scheduler.params.total_num_steps"}

_SAID_BY = {
    "train_micro_batch_size_per_gpu": "micro_batch_size", "gradient_accumulation_steps": "gradient_accumulation_steps",
    "train_batch_size": "global_batch_size", "gradient_clipping": "max_grad_norm",
    "optimizer.params.lr": "learning_rate",
    "optimizer.params.betas": "adam_beta1 and adam_beta2", "optimizer.params.eps": "adam_epsilon",
    "optimizer.params.weight_decay": "weight_decay", "scheduler.params.warmup_max_lr": "learning_rate",
    "scheduler.params.warmup_num_steps": "warmup_steps", "scheduler.params.total_num_steps": "max_steps",
    **dict.fromkeys((*_MASTERS, _SUMS), "master_weights"),
    "bf16.enabled": "bf16", "fp16.enabled": "fp16", "optimizer.type": "optimizer", "scheduler.type": "lr_scheduler",
}  # fmt: skip


def _around(document: Mapping[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    *path, last = key.split(".")
    here: Any = document
    for part in path:
        here = here.get(part) if isinstance(here, dict) else None
    return (here if isinstance(here, dict) else None), last


def _fill(around: dict[str, Any], last: str, value: Any) -> None:
    if value is None:
        del around[last]
    else:
        around[last] = value


def _agree(said: Any, value: Any) -> bool:
    if isinstance(value, list):
        return isinstance(said, list) and len(said) == len(value) and all(map(_agree, said, value))
    if isinstance(value, bool) or isinstance(said, bool):
        return said is value
    if isinstance(said, int | float) and isinstance(value, int | float):
        return abs(said - value) <= 1e-12 * max(abs(said), abs(value))
    return bool(said == value)


def _mismatch(key: str, said: Any, value: Any) -> BadInput:
    ours = _SAID_BY.get(key)
    meant = "asks for something else" if value is None else f"is {value}"
    message = f"the DeepSpeed config says {said!r}, but {ours or 'what the run uses'} {meant}"
    fix = f"leave {key.split('.')[0]} out" if key.endswith(".type") else f'write "auto" for {key}'
    if ours == "master_weights":
        fix = f"leave {key} out: `master_weights: fp32` or `bf16` says it"
    return BadInput(message, key=f"deepspeed.{key}", value=said, allowed=value, fix=fix)


def _autos(document: Mapping[str, Any], place: str) -> Iterator[str]:
    for key, value in document.items():
        here = f"{place}.{key}".removeprefix(".")
        if isinstance(value, Mapping):
            yield from _autos(value, here)
        elif value == "auto" and here != "data_types.keep_in_fp32_modules":  # DeepSpeed's own "auto"
            yield here


def _left_auto(key: str) -> BadInput:
    return BadInput('"auto" means nothing for this key', key=f"deepspeed.{key}", value="auto", fix="write a value")
