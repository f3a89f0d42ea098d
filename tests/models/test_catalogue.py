"""The shipped catalogue: every entry against the model transformers builds, and against published counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dtrain.models import catalogue
from dtrain.models.catalogue import catalogue_names, catalogued, nearest_names
from dtrain.models.read import facts_from_config
from tests.models import meta

ENTRIES = json.loads(Path(catalogue.__file__).with_name("catalogue.json").read_text(encoding="utf-8"))

PUBLISHED = {
    "TinyLlama/TinyLlama_v1.1": 1_100_048_384,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "codellama/CodeLlama-34b-hf": 33_743_970_304,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "google/gemma-2b": 2_506_172_416,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-3-270m": 268_098_176,
    "microsoft/phi-2": 2_779_683_840,
    "microsoft/phi-4": 14_659_507_200,
    "EleutherAI/pythia-12b": 11_846_072_320,
    "openai-community/gpt2": 124_439_808,
    "EleutherAI/gpt-j-6b": 6_050_882_784,
    "facebook/opt-350m": 331_196_416,
    "bigscience/bloom": 176_247_271_424,
    "mosaicml/mpt-7b": 6_649_286_656,
    "tiiuae/falcon-40b": 41_303_293_952,
    "stabilityai/stablelm-2-1_6b": 1_644_515_328,
    "bigcode/starcoder2-15b": 15_957_889_024,
    "allenai/OLMo-2-1124-7B": 7_298_617_344,
    "allenai/OLMoE-1B-7B-0924": 6_919_161_856,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "ibm-granite/granite-3.3-8b-base": 8_170_864_640,
    "openai/gpt-oss-20b": 20_914_757_184,
    "openai/gpt-oss-120b": 116_829_156_672,
    "deepseek-ai/DeepSeek-V2-Lite": 15_706_484_224,
}
"""What the hub shows for the published weights (safetensors totals; tied heads counted once)."""

SIGLIP_AND_PROJECTOR = {"google/gemma-3-4b-it": (2560, 4_300_079_472), "google/gemma-3-27b-it": (5376, 27_432_406_640)}
"""Hidden size and the published count of text and vision together."""


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["names"][0])
def test_every_entry_is_what_transformers_builds(entry: Mapping[str, Any]) -> None:
    model = meta.build(entry["config"])
    facts = facts_from_config(entry["config"], entry["names"][0], "catalogue")
    assert facts.parameters == meta.parameters(model)
    assert meta.planned_kinds(facts) == meta.real_kinds(model)


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items(), ids=PUBLISHED)
def test_published_counts(name: str, count: int) -> None:
    config = catalogued(name)
    assert config is not None
    assert facts_from_config(config, name, "catalogue").parameters == count


@pytest.mark.parametrize(("name", "told"), SIGLIP_AND_PROJECTOR.items(), ids=SIGLIP_AND_PROJECTOR)
def test_multimodal_gemma_is_the_published_count_less_its_vision_part(name: str, told: tuple[int, int]) -> None:
    hidden, count = told
    vision_tower, width = 416_866_032, 1152
    config = catalogued(name)
    assert config is not None
    text = facts_from_config(config, name, "catalogue").parameters
    assert text + vision_tower + width * hidden + width == count


def test_names_are_unique_whatever_their_case() -> None:
    names = [name.lower() for entry in ENTRIES for name in entry["names"]]
    assert len(names) == len(set(names)) == len(catalogue_names())


def test_a_name_is_found_in_any_case() -> None:
    config = catalogued("meta-llama/Llama-2-7b-hf")
    assert config is not None
    assert catalogued("META-LLAMA/llama-2-7B-hf") == config
    assert catalogued("meta-llama/llama-9") is None


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("TinyLlama/TinyLlama_v1.0", "TinyLlama/TinyLlama_v1.1"),
        ("meta-lama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("mistral-7b-v0.1", "mistralai/Mistral-7B-v0.1"),
    ],
)
def test_the_nearest_name_is_the_one_that_was_meant(slip: str, meant: str) -> None:
    assert meant in nearest_names(slip)
