"""Axolotl's keys whose values need more than a table: each function writes what one of them stands for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dtrain.config.alias import ASKS_FOR_NOTHING, Work, asks_nothing
from dtrain.config.tree import Node, grown
from dtrain.config.validate import nearest


def _put(work: Work, name: str, node: Node, to: str, value: object) -> None:
    work.put(to, grown(value, node.said((*work.place, name)).origin))


def _placed(work: Work, name: str, node: Node, **ours: object) -> None:
    """Write our keys for one of Axolotl's, and say so."""
    for to, value in ours.items():
        _put(work, name, node, to, value)
    work.note(node, f"`{name}` is read as {', '.join(f'`{to}: {value}`' for to, value in ours.items())}")


def tokens(work: Work, name: str, node: Node) -> None:
    """`tokens:` as a mapping is the old spelling of `special_tokens`."""
    if node.is_mapping:
        del work.keys[name]
        work.put("special_tokens", node.said((*work.place, name)))
        work.note(node, "`tokens` with names in it is read as `special_tokens`")


def recompute_and_offload(work: Work, name: str, node: Node) -> None:
    """`activation_offloading` refines `gradient_checkpointing: true`, which it overrules."""
    del work.keys[name]
    if asks_nothing(node):
        work.leave_out(name, ASKS_FOR_NOTHING)
        return
    known = {True: "offload", "legacy": "offload", "hidden_states": "offload"}
    value = known.get(node.value) if isinstance(node.value, bool | str) else None
    if value is None:
        work.refuse(name, node, "not supported: activations stay in memory", "gradient_checkpointing: offload (to CPU)")
        return
    _refine_checkpointing(work, name, node, value)


def selective(work: Work, name: str, node: Node) -> None:
    """`selective_checkpointing: true` refines `gradient_checkpointing: true`."""
    del work.keys[name]
    if asks_nothing(node):
        work.leave_out(name, ASKS_FOR_NOTHING)
    elif node.value is True:
        _refine_checkpointing(work, name, node, "selective")
    else:
        work.refuse(name, node, "what is saved and recomputed cannot be listed", "gradient_checkpointing: selective")


def _refine_checkpointing(work: Work, name: str, node: Node, value: str) -> None:
    there = work.keys.get("gradient_checkpointing")
    if there is not None and there.value in (True, "full", value):
        del work.keys["gradient_checkpointing"]
    _placed(work, name, node, gradient_checkpointing=value)


def strategy(work: Work, name: str, node: Node) -> None:
    """`save_strategy`, `eval_strategy`: when to save and evaluate, where no number says it."""
    del work.keys[name]
    what = "eval" if name.startswith("eval") else "save"
    numbers = (f"{what}_steps", f"{what}s_per_epoch")
    said = [key for key in numbers if key in work.keys and not asks_nothing(work.keys[key])]
    if asks_nothing(node) or node.value == "steps":
        work.leave_out(name, f"`{numbers[0]}` and `{numbers[1]}` say when")
    elif node.value == "epoch" and said in ([], [numbers[1]]):
        if not said:
            _placed(work, name, node, **{numbers[1]: 1})
        else:
            work.leave_out(name, f"`{numbers[1]}` says when")
    elif node.value == "no" and not said:
        work.leave_out(name, f"without `{numbers[0]}` there is nothing between start and end to switch off")
    else:
        fix = f"say {numbers[0]} or {numbers[1]} and leave this key out"
        words = f"contradicts {said[0]}" if said else "not supported: the last weights are kept, not others"
        work.refuse(name, node, words, fix)


def float32(work: Work, name: str, node: Node) -> None:
    del work.keys[name]
    if asks_nothing(node):
        work.leave_out(name, ASKS_FOR_NOTHING)
    else:
        _placed(work, name, node, bf16=False, fp16=False)


def base_model_config(work: Work, name: str, node: Node) -> None:
    """Old files repeat `base_model` here."""
    del work.keys[name]
    base = work.keys.get("base_model")
    if asks_nothing(node) or (base is not None and base.value == node.value):
        work.leave_out(name, ASKS_FOR_NOTHING if asks_nothing(node) else "it repeats `base_model`")
    else:
        fix = "make a folder with that config.json and the weights, and name it as base_model"
        work.refuse(name, node, "not supported: the model's own config would be used", fix)


def eval_sequence_len(work: Work, name: str, node: Node) -> None:
    del work.keys[name]
    train = work.keys.get("sequence_len")
    if asks_nothing(node) or (train is not None and train.value == node.value):
        work.leave_out(name, ASKS_FOR_NOTHING if asks_nothing(node) else "it repeats `sequence_len`")
    else:
        work.refuse(name, node, "not supported yet: held-out rows would use sequence_len", "leave it out")


def quantization_kwargs(work: Work, name: str, node: Node) -> None:
    """`bnb_config_kwargs`: two of its keys are ours."""
    del work.keys[name]
    if not node.is_mapping:
        work.leave_out(name, ASKS_FOR_NOTHING)
        return
    for key, value in node.value.items():
        if key in ("bnb_4bit_use_double_quant", "bnb_4bit_quant_type"):
            work.put(key, value.said((*work.place, name, key)))
            work.note(value, f"`{name}.{key}` is read as `{key}`")
        else:
            fix = "leave it out; bnb_4bit_quant_type and bnb_4bit_use_double_quant are known"
            work.refuse(f"{name}.{key}", value, "not supported: it would not reach bitsandbytes", fix)


_PICKS_KERNELS = {
    "CutCrossEntropyPlugin", "LigerPlugin", "KernelsPlugin", "SwanLabPlugin", "LMEvalPlugin", "ExpertParallelPlugin",
}  # fmt: skip
"""Axolotl 0.18 plugins that leave the trained numbers alone (axolotl/integrations)."""


def plugins(work: Work, name: str, node: Node) -> None:
    del work.keys[name]
    if asks_nothing(node):
        work.leave_out(name, ASKS_FOR_NOTHING)
        return
    entries = node.value if isinstance(node.value, list) else [node]
    foreign = [one for one in entries if str(one.value).rpartition(".")[2] not in _PICKS_KERNELS]
    for one in foreign:
        fix = "leave it out, or train this file with Axolotl"
        work.refuse(name, one, "this plugin of Axolotl changes the training; it would not have run", fix)
    if not foreign:
        work.leave_out(name, "these plugins pick kernels or report; dtrain chooses its own")


# --- FSDP ---------------------------------------------------------------------------------------------------------

_SHARDING = {"FULL_SHARD": 3, "SHARD_GRAD_OP": 2, "NO_SHARD": 0, "HYBRID_SHARD": 3, "HYBRID_SHARD_ZERO2": 2}
"""FSDP's names for what ZeRO calls stages (torch.distributed.fsdp.ShardingStrategy)."""
_WRAPPING = {
    "state_dict_type", "final_state_dict_type", "auto_wrap_policy", "transformer_layer_cls_to_wrap", "min_num_params",
    "cpu_ram_efficient_loading", "limit_all_gathers", "sync_module_states", "use_orig_params", "version",
    "backward_prefetch", "forward_prefetch", "cpu_offload_pin_memory", "mixed_precision_policy",
}  # fmt: skip
"""Keys of `fsdp_config` that say how FSDP does it, not what is trained."""
_MEANT = {"offload_params", "activation_checkpointing", "reshard_after_forward", "sharding_strategy"}
_FSDP_NOTE = "FSDP's sharding, as DeepSpeed does it"


def fsdp(work: Work, name: str, node: Node) -> None:
    """`fsdp: [full_shard, auto_wrap, offload]`, the old list."""
    del work.keys[name]
    if asks_nothing(node):
        work.leave_out(name, ASKS_FOR_NOTHING)
        return
    entries = node.value if isinstance(node.value, list) else [replace(node, value=word) for word in _words(node)]
    for one in entries:
        word = str(one.value).upper()
        if word in _SHARDING:
            _say_stage(work, name, one, _SHARDING[word])
        elif word == "OFFLOAD":
            _placed(work, name, one, offload_optimizer="cpu", offload_params="cpu")
        elif word != "AUTO_WRAP":
            work.refuse(name, one, "not one of FSDP's words", "full_shard, shard_grad_op, no_shard, offload, auto_wrap")


def _words(node: Node) -> Iterable[str]:
    return str(node.value).replace(",", " ").split()


def fsdp_config(work: Work, name: str, node: Node) -> None:
    """Sharding becomes `zero_stage`, offload and activation checkpointing our keys; wrapping is left out."""
    del work.keys[name]
    if not node.is_mapping or not node.value:
        if asks_nothing(node):
            work.leave_out(name, ASKS_FOR_NOTHING)
        else:
            work.refuse(name, node, "this is a mapping in Axolotl", "say zero_stage: 3 instead")
        return
    for key, value in node.value.items():
        if not _fsdp_key(work, f"{name}.{key}", key, value):
            near = nearest(key.removeprefix("fsdp_"), _WRAPPING | _MEANT)
            fix = f"did you mean `{near}`?" if near else "leave it out"
            work.refuse(f"{name}.{key}", value, "unknown key", fix)
    if not {"reshard_after_forward", "sharding_strategy"} & {key.removeprefix("fsdp_") for key in node.value}:
        _say_default_stage(work, name, node)


def _say_default_stage(work: Work, name: str, node: Node) -> None:
    """FSDP shards everything unless told otherwise; the `fsdp:` list may have told."""
    if "fsdp" not in work.keys and "zero_stage" not in work.keys:
        _say_stage(work, name, node, 3)


def _fsdp_key(work: Work, said: str, key: str, value: Node) -> bool:
    """One key of `fsdp_config`; false when it is not known."""
    plain = key.removeprefix("fsdp_")
    if plain in _WRAPPING:
        work.leave_out(said, "how FSDP wraps and saves; dtrain shards with ZeRO and saves whole models")
    elif plain not in _MEANT:
        return False
    elif plain == "sharding_strategy":
        stage = _SHARDING.get(str(value.value).upper())
        if stage is None:
            work.refuse(said, value, "not one of FSDP's strategies", " | ".join(_SHARDING))
        else:
            _say_stage(work, said, value, stage)
    elif plain == "reshard_after_forward":
        _say_stage(work, said, value, 2 if value.value in (False, "SHARD_GRAD_OP") else 3)
    elif asks_nothing(value):
        work.leave_out(said, ASKS_FOR_NOTHING)
    elif plain == "offload_params":
        _placed(work, said, value, offload_optimizer="cpu", offload_params="cpu")
    else:
        work.keys.pop("gradient_checkpointing", None)
        _placed(work, said, value, gradient_checkpointing="full")
    return True


def _say_stage(work: Work, said: str, node: Node, stage: int) -> None:
    _put(work, said, node, "zero_stage", stage)
    work.note(node, f"`{said}` is read as `zero_stage: {stage}` ({_FSDP_NOTE})")


def unset_by_false(work: Work, name: str, node: Node) -> None:
    """`deepspeed: false` says what leaving it out says."""
    if asks_nothing(node):
        work.keys[name] = replace(node, value=None)


# --- chat templates -----------------------------------------------------------------------------------------------

AXOLOTLS_TEMPLATES = frozenset({
    "alpaca", "aya", "cohere", "command_a", "command_a_rag", "command_a_tool_use", "deepseek_v2", "deepseek_v3",
    "exaone", "exaone4", "falcon_h1", "gemma", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "jamba", "llama3",
    "llama3_2_vision", "llama4", "llava", "metharme", "mistral_v1", "mistral_v2v3", "mistral_v3_tekken",
    "mistral_v7_tekken", "nemotron_h", "phi_3", "phi_35", "phi_4", "pixtral", "qwen2_vl", "qwen3", "qwen3_5",
    "qwen_25",
})  # fmt: skip
"""Templates that Axolotl ships as files (axolotl 0.18, utils/chat_templates/templates), but for chatml, which is ours
too. No length depends on them as planned, so `plan` goes on; `launch` refuses them."""


def chat_template(work: Work, name: str, node: Node) -> None:
    """A template by the name of one of Axolotl's files."""
    if asks_nothing(node):
        work.keys[name] = replace(node, value=None)
    elif isinstance(node.value, str) and node.value in AXOLOTLS_TEMPLATES:
        work.note(node, f"`{name}: {node.value}` is a file of Axolotl's: launch needs tokenizer_default, or its text")


def rope_scaling(work: Work, name: str, node: Node) -> None:
    """transformers' newer configs write `rope_type` for `type`."""
    if node.is_mapping and "rope_type" in node.value and "type" not in node.value:
        renamed = {("type" if key == "rope_type" else key): value for key, value in node.value.items()}
        work.keys[name] = replace(node, value=renamed)
        work.note(node, f"`{name}.rope_type` is read as `{name}.type`")


# --- datasets -----------------------------------------------------------------------------------------------------

_SAME_TYPE = {
    "chat_template.default": "chat_template", "messages": "chat_template", "alpaca.load": "alpaca",
}  # fmt: skip
KNOWN_TYPES = ("alpaca", "chat_template", "completion")


def dataset_type(work: Work, name: str, node: Node) -> None:
    """`sharegpt…` becomes `chat_template` over `conversations/from/value`; other spellings of ours become ours."""
    if not isinstance(node.value, str):
        return
    if node.value.split(".")[0].split(":")[0] == "sharegpt":
        _sharegpt(work, name, node)
    elif node.value in _SAME_TYPE:
        del work.keys[name]
        _placed(work, name, node, type=_SAME_TYPE[node.value])
    elif node.value not in KNOWN_TYPES:
        kind = node.value.split(".")[0].split(":")[0]
        near = nearest(kind, KNOWN_TYPES)
        fix = f"did you mean `{near}`?" if near else "describe the prompt yourself: type: {field_instruction: …}"
        fix = "type: chat_template, with chat_template: chatml" if kind == "chatml" else fix
        words = f"not a type dtrain knows ({', '.join(KNOWN_TYPES)}, or a mapping)"
        work.refuse(name, node, words, fix)


def _sharegpt(work: Work, name: str, node: Node) -> None:
    del work.keys[name]
    said = node.said((*work.place, name)).origin
    work.keys[name] = grown("chat_template", said)
    if "field_messages" not in work.keys:
        work.keys["field_messages"] = grown("conversations", said)
    if not {"message_property_mappings", "message_field_role", "message_field_content"} & set(work.keys):
        work.keys["message_property_mappings"] = grown({"role": "from", "content": "value"}, said)
    work.note(node, "`type: sharegpt` is read as `chat_template` over `conversations` with `from` and `value`")
