"""Parts of a model's parameters that optimizers treat otherwise than the rest, as shares of all."""

from __future__ import annotations

from functools import lru_cache

from dtrain.models.facts import Layer, ModelFacts


def small_parameters(facts: ModelFacts) -> int:
    """Norms and biases: elements that are no matrix."""
    return sum(layers * (layer.norm_parameters + _biases(layer)) for layer, layers in facts.layers)


@lru_cache(maxsize=256)
def vector_share(facts: ModelFacts) -> float:
    return small_parameters(facts) / max(1, facts.parameters)


@lru_cache(maxsize=256)
def embedding_share(facts: ModelFacts) -> float:
    return facts.embedding_parameters / max(1, facts.parameters)


@lru_cache(maxsize=256)
def hidden_share(facts: ModelFacts) -> float:
    """The blocks' matrices."""
    matrices = sum(
        layers * one.count * one.inputs * one.outputs for layer, layers in facts.layers for one in layer.linears
    )
    return matrices / max(1, facts.parameters)


@lru_cache(maxsize=256)
def factored_share(facts: ModelFacts) -> float:
    """Rows and columns over elements, of all matrices."""
    lines = sum(
        layers * one.count * (one.inputs + one.outputs) for layer, layers in facts.layers for one in layer.linears
    )
    lines += 2 * (facts.vocab_size + facts.hidden_size)
    return min(1.0, lines / max(1, facts.parameters))


def _biases(layer: Layer) -> int:
    return sum(one.count * one.outputs for one in layer.linears if one.bias)
