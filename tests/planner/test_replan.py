"""The layout after a shortage: the same global batch and window, within what could be had, never one that failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dtrain.config.load import loads
from dtrain.hardware.profiles import resolve_profile
from dtrain.models.hub import load_facts
from dtrain.planner.plan import make_plan
from dtrain.planner.replan import Layout, Shortage, changes, next_plan

YAML = """\
base_model: {model}
datasets:
  - path: rows.jsonl
    type: alpaca
sequence_len: 4096
learning_rate: 1e-5
{more}
"""


def layout(tmp_path: Path, more: str, profile: str = "a100x8") -> Layout:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 10)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
        "max_position_embeddings": 4096,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = loads(YAML.format(model=tmp_path, more=more))
    machine = resolve_profile(profile)
    facts = load_facts(str(tmp_path))
    return Layout(loaded, machine, facts, make_plan(loaded, machine, facts).as_json())


@pytest.mark.parametrize("more", ["micro_batch_size: 8\nzero_stage: 2", "global_batch_size: 128", "batch_size: 16"])
def test_each_next_plan_is_smaller_until_nothing_is_left(tmp_path: Path, more: str) -> None:
    run, tried = layout(tmp_path, more), []
    needed = run.plan["memory_gib"]["peak_allocated"]
    for _ in range(20):
        tried.append(run.choice)
        had = 0.7 * run.plan["memory_gib"]["peak_allocated"]
        found = next_plan(run, Shortage(had, 0.1 * had, "backward", 3), tried)
        if found is None:
            break
        assert found.choice not in tried
        assert found.choice.global_batch_size == run.choice.global_batch_size
        assert found.choice.sequence_len == run.choice.sequence_len
        assert found.memory.peak_allocated < had
        assert changes(run.choice, found.choice)
        run = Layout(run.loaded, run.profile, run.facts, found.as_json())
    assert found is None
    assert len(tried) >= 2
    assert needed > run.plan["memory_gib"]["peak_allocated"]


def test_what_was_needed_beyond_the_plan_makes_all_plans_larger(tmp_path: Path) -> None:
    run = layout(tmp_path, "micro_batch_size: 8\nzero_stage: 2")
    planned = run.plan["memory_gib"]["peak_allocated"]
    found = next_plan(run, Shortage(1.5 * planned, 0.5 * planned, "forward", 0))
    assert found is not None
    assert found.bias.memory == pytest.approx(2.0)
    assert found.memory.peak_allocated < 1.5 * planned


def test_a_deepspeed_file_of_ones_own_is_not_overruled(tmp_path: Path) -> None:
    run = layout(tmp_path, "micro_batch_size: 8\ndeepspeed: {zero_optimization: {stage: 2}}")
    assert next_plan(run, Shortage(1.0, 1.0, "forward", 0)) is None
