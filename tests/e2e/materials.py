"""What the tests train on: stories, and a tiny Llama with the tokenizer of a Llama 2, both made without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 64, 128, 2, 4, 2
VOCABULARY = 600


def stories(count: int) -> list[dict[str, str]]:
    """Rows as the course's dataset has them: a synopsis, a short story."""
    who = ("a fox", "an old sailor", "the baker's girl", "a clockmaker", "two sisters")
    what = ("a lost key", "a lantern", "a silver bell", "the last letter", "a blue kite")
    where = ("in the harbour", "under the mill", "behind the church", "on the hill", "by the river")
    rows = []
    for number in range(count):
        one, two, three = who[number % 5], what[number // 5 % 5], where[number // 25 % 5]
        synopsis = f"{one} looks for {two} {three} and does not give up."
        story = f"Once {one} had {two}. It was gone one morning. So {one} went out and searched {three}, " * (
            1 + number % 3
        )
        rows.append({"synopsis": synopsis, "short_story": story + "and at dusk it was found."})
    return rows


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_model(folder: Path, *, chat_template: str | None = None) -> Path:
    """A LlamaForCausalLM that can be trained: config, weights, tokenizer; no pad token, as Llama 2 has none."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(folder, chat_template)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": vocabulary, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "initializer_range": 0.02,
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights(vocabulary), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def weights(vocabulary: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    key_width = HIDDEN // HEADS * KV_HEADS
    shapes = {"model.embed_tokens.weight": (vocabulary, HIDDEN), "lm_head.weight": (vocabulary, HIDDEN)}
    for layer in range(LAYERS):
        inside = {
            "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (key_width, HIDDEN),
            "self_attn.v_proj": (key_width, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (INTERMEDIATE, HIDDEN), "mlp.up_proj": (INTERMEDIATE, HIDDEN),
            "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        }  # fmt: skip
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in inside.items()}
    found = {name: random.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}
    of_layer = ("input_layernorm", "post_attention_layernorm")
    norms = ["model.norm", *(f"model.layers.{layer}.{name}" for layer in range(LAYERS) for name in of_layer)]
    return found | {f"{name}.weight": np.ones(HIDDEN, dtype=np.float32) for name in norms}


def write_tokenizer(folder: Path, chat_template: str | None) -> int:
    """As Llama 2's: BPE with byte fallback, `▁` for spaces, <s> in front. Gives the vocabulary's size."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # words apart, as sentencepiece trains
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator((row["short_story"] for row in stories(50)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    about = json.loads(tokenizer.to_str())
    about["added_tokens"] = [token for token in about["added_tokens"] if token["id"] < 3]  # bytes are ordinary tokens
    (folder / "tokenizer.json").write_text(json.dumps(about))
    told = {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "model_max_length": 2048, "legacy": False, "add_bos_token": True, "add_eos_token": False,
    }  # fmt: skip
    if chat_template is not None:
        told["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return tokenizer.get_vocab_size()
