"""A model folder tells that its model was trained with `attention_pattern` or `segment_memory`, which no other library
has: a key in its config, and a README that says what reading it otherwise means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dtrain.config.schema import AttentionPattern
from dtrain.files import read_json, write_json, write_whole
from dtrain.planner.sparse_attention import TOLD_UNDER
from dtrain.train.attention import SDPA, UNLIMITED, Sight, register

KEY = TOLD_UNDER
"""In config.json, or in the adapter_config.json of an adapter: `{"attention_pattern": {…}}` or `{"segment_memory": N}`.
Other libraries pass it by."""


def mark(folder: Path, sight: Sight) -> None:
    """Write what a token sees into a folder that holds a model or an adapter. Where it sees everything, a base model's
    own word is taken back."""
    told, file = _told(sight), _config_file(folder)
    document = read_json(file)
    if told or KEY in document:
        kept = {name: value for name, value in document.items() if name != KEY}
        write_json(file, kept | ({KEY: told} if told else {}))
    if told:
        write_whole(folder / "README.md", README.format(name=file.name, key=KEY, what=next(iter(told))))


README = """\
# Trained with sparse attention

The tokens of this model did not attend to all earlier ones: dtrain trained it with `{what}`. What exactly is under
`{key}` in `{name}`.

**transformers does not know this key.** Loaded there, or in any engine that serves models, every token attends to
everything before it, which is another model than the one that was trained: expect worse text, the more so the longer
it is. `dtrain generate` reads the key and computes attention as in training.
"""


def sight_in(folder: Path) -> Sight:
    """What tokens of a folder's model see."""
    file = _config_file(folder)
    told: dict[str, Any] = (read_json(file) if file.is_file() else {}).get(KEY) or {}
    pattern = told.get("attention_pattern")
    return Sight(
        pattern=AttentionPattern.model_validate(pattern) if pattern else None, memory=told.get("segment_memory")
    )


def honoured(folder: Path) -> dict[str, Any]:
    """What transformers is told besides so that a folder's model attends as in training; nothing for most."""
    sight = sight_in(folder)
    if sight == UNLIMITED:
        return {}
    register(sight)
    return {"attn_implementation": SDPA}


def _told(sight: Sight) -> dict[str, Any]:
    told = {
        "attention_pattern": sight.pattern.model_dump() if sight.pattern else None, "segment_memory": sight.memory,
    }  # fmt: skip
    return {name: value for name, value in told.items() if value is not None}


def _config_file(folder: Path) -> Path:
    """Of a whole model, or of an adapter."""
    whole = folder / "config.json"
    return whole if whole.is_file() else folder / "adapter_config.json"
