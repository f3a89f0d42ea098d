"""What `launch` cannot do yet although a plan can count it. A line goes when support lands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dtrain.config.moves import AXOLOTLS_TEMPLATES
from dtrain.config.origins import Loaded
from dtrain.config.tree import error_at
from dtrain.errors import BadInput


def _is_set(value: Any) -> bool:
    return value is not None and value is not False


def _one_of(*values: str) -> Callable[[Any], bool]:
    return lambda value: value in values


_OWN_TEMPLATE = "chat_template: tokenizer_default (the model's own), or write its text under chat_template_jinja"
NOT_YET: tuple[tuple[str, Callable[[Any], bool], str], ...] = (  # key, what launch cannot do with it, what it can
    ("plan_as", _is_set, "leave plan_as out: it describes another framework, to plan for it"),
    ("torch_compile", _is_set, "torch_compile: false"),
    ("fp8", _is_set, "fp8: false, and bf16: auto"),
    ("chat_template", _one_of(*AXOLOTLS_TEMPLATES), _OWN_TEMPLATE),
    (
        "optimizer",
        _one_of("adamw_torch_8bit", "adamw_torch_4bit", "adamw_torch_fp8"),
        "optimizer: adamw_bnb_8bit, of the same size: ZeRO cuts torchao's blocks of 256 numbers",
    ),
)


def can_launch(key: str, value: Any) -> bool:
    """Whether launch runs this value of a key: only such values may the planner choose by itself."""
    return not any(key == refused_key and refused(value) for refused_key, refused, _ in NOT_YET)


def launch_refusals(loaded: Loaded) -> list[BadInput]:
    """An error for each key that `plan` understands and `launch` would not honour; empty when it can start."""
    said = [(key, getattr(loaded.config, key), refused, instead) for key, refused, instead in NOT_YET]
    for name in ("datasets", "test_datasets"):
        for index, dataset in enumerate(getattr(loaded.config, name) or ()):
            key = f"{name}[{index}].chat_template"
            said.append((key, dataset.chat_template, _one_of(*AXOLOTLS_TEMPLATES), _OWN_TEMPLATE))
    found = []
    for key, value, refused, instead in said:
        if refused(value):
            told = value if isinstance(value, str | int | bool) else None
            message = "dtrain can plan for this, but launch cannot run it yet"
            found.append(error_at(loaded.origin(key), key, message, value=told, fix=instead))
    return found
