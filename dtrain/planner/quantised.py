"""A base model that is published quantised: what its config.json says of it, and why it is not trained from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dtrain.config.origins import Loaded
from dtrain.config.tree import error_at
from dtrain.errors import BadInput
from dtrain.models.facts import ModelFacts

DEQUANTISED = frozenset({"mxfp4"})
"""Methods whose weights transformers turns back into 16 bits where nothing else is asked (gpt-oss)."""


def quantised_base_errors(loaded: Loaded, facts: ModelFacts) -> Iterator[BadInput]:
    """Codes have no gradient, and an adapter is merged into numbers that were not rounded: a full-precision base is
    quantised while it is loaded instead (`load_in_4bit`)."""
    method = quantised_by(facts.config)
    if method is None or loaded.config.plan_as is not None or loaded.config.reinit_weights:
        return
    why = "cannot be trained" if loaded.config.adapter is None else "are no base that an adapter can be merged into"
    fix = "name the full-precision model; `adapter: qlora` with `load_in_4bit: true` quantises it while loading"
    message = f"its weights are quantised ({method}), and such weights {why}"
    yield error_at(loaded.origin("base_model"), "base_model", message, value=loaded.config.base_model, fix=fix)


def quantised_by(model_config: Mapping[str, object]) -> str | None:
    """The method, as a config.json names it; None where weights are numbers."""
    said = model_config.get("quantization_config")
    method = said.get("quant_method", "an unnamed method") if isinstance(said, Mapping) else None
    return None if method is None or method in DEQUANTISED else str(method)
