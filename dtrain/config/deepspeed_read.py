"""Reads the DeepSpeed config that `deepspeed:` names when a config is loaded, and writes what it pins as our keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dtrain.config.deepspeed_file import mismatches, pins, said_in
from dtrain.config.find import find_file, read_small
from dtrain.config.origins import Origin
from dtrain.config.schema import Config
from dtrain.config.tree import Node, error_at, grown, read
from dtrain.config.validate import at, nearest
from dtrain.errors import BadInput

KNOWN_KEYS = frozenset({
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "zero_optimization", "bf16", "fp16", "optimizer", "scheduler", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer", "communication_data_type", "seq_parallel_communication_data_type", "data_types",
    "prescale_gradients", "gradient_predivide_factor", "sparse_gradients", "disable_allgather",
    "activation_checkpointing", "aio", "checkpoint", "steps_per_print", "wall_clock_breakdown", "memory_breakdown",
    "dump_state", "flops_profiler", "comms_logger", "timers", "tensorboard", "wandb", "csv_monitor", "comet",
    "log_level", "torch_autocast", "disable_python_gc", "dataloader_drop_last", "vocabulary_size", "eigenvalue",
})  # fmt: skip
"""Top-level keys of a DeepSpeed config that work under dtrain's loop (deepspeed 0.19.8, runtime/config.py)."""

OTHER_LOOPS = frozenset({
    "pipeline", "compile", "tensor_parallel", "expert_parallel", "use_data_before_expert_parallelism", "elasticity",
    "autotuning", "curriculum_learning", "data_efficiency", "compression_training", "hybrid_engine", "amp",
    "progressive_layer_drop", "sparse_attention", "quantize_training", "weight_quantization", "nebula",
    "managed_gradient_accumulation", "gradient_allreduce_op", "datastates_ckpt",
})  # fmt: skip
"""Keys that DeepSpeed has and dtrain's loop does not run with."""

AXOLOTL_FILES = {
    "zero1.json": "zero1.json", "zero1_torch_compile.json": "zero1.json", "zero2.json": "zero2_offload.json",
    "zero2_torch_compile.json": "zero2_offload.json", "zero3.json": "zero3.json", "zero3_bf16.json": "zero3.json",
    "zero3_bf16_cpuoffload_all.json": "zero3_offload.json", "zero3_bf16_cpuoffload_params.json": "zero3_offload.json",
}  # fmt: skip
"""`deepspeed_configs/NAME` of Axolotl → the one of ours that shards and offloads alike (its zero2 offloads, too)."""


@dataclass(frozen=True)
class Resolved:
    """The config's tree with the DeepSpeed document in it, and its pins as our keys."""

    tree: Node
    notes: tuple[str, ...] = ()
    errors: tuple[BadInput, ...] = ()


def resolve(tree: Node, config_file: Path | None) -> Resolved:
    """Read the file that `deepspeed:` names, check its keys, and write what it pins as `zero_stage` and offload."""
    said = tree.value.get("deepspeed")
    if said is None or not isinstance(said.value, str | dict):
        return Resolved(tree)
    notes: tuple[str, ...] = ()
    if isinstance(said.value, str):
        try:
            said, notes = _read_file(said, config_file)
        except BadInput as error:
            return Resolved(replace(tree, value=_without(tree.value, "deepspeed")), (), (error,))
    keys = {**tree.value, "deepspeed": said}
    errors = [*_unknown_keys(said), *_bad_pins(said)]
    for key, value in _pinned_by(said.plain(), keys).items():
        clash = _pin(keys, said, key, _PINNED[key], value)
        errors += [clash] if clash else []
    return Resolved(replace(tree, value=keys), notes, tuple(errors))


_PINNED = {
    "zero_stage": ("zero_optimization", "stage"),
    "offload_optimizer": ("zero_optimization", "offload_optimizer", "device"),
    "offload_params": ("zero_optimization", "offload_param", "device"),
    "nvme_path": ("zero_optimization", "offload_optimizer", "nvme_path"),
    "micro_batch_size": ("train_micro_batch_size_per_gpu",),
    "gradient_accumulation_steps": ("gradient_accumulation_steps",),
    "global_batch_size": ("train_batch_size",),
}
"""Our key → the path of what pins it in a DeepSpeed config."""


def _pinned_by(document: dict[str, Any], keys: dict[str, Node]) -> dict[str, int | str | None]:
    """Our keys and their values. One way of saying the accumulation is enough; the engine checks the others."""
    found = pins(document)
    sizes = {key: document.get(_PINNED[key][0]) for key in ("micro_batch_size", *_ACCUMULATION)}
    sizes = {key: size for key, size in sizes.items() if type(size) is int}
    said = [key for key in ("batch_size", *_ACCUMULATION) if key in keys and keys[key].value is not None]
    others = _ACCUMULATION if said else [key for key in _ACCUMULATION if key in sizes][1:]
    zero = {key: getattr(found, key) for key in ("zero_stage", "offload_optimizer", "offload_params")}
    return zero | _drive(document) | {key: size for key, size in sizes.items() if key not in others or key in said}


def _drive(document: dict[str, Any]) -> dict[str, int | str | None]:
    """One folder for both that may lie on a drive."""
    zero = document.get("zero_optimization")
    sections = [zero.get(name) for name in ("offload_optimizer", "offload_param")] if isinstance(zero, dict) else []
    said = [one.get("nvme_path") for one in sections if isinstance(one, dict) and one.get("device") == "nvme"]
    return {"nvme_path": said[0]} if said and isinstance(said[0], str) else {}


_ACCUMULATION = ("gradient_accumulation_steps", "global_batch_size")


def disagreements(config: Config, tree: Node) -> list[BadInput]:
    """Values of the DeepSpeed config that are not "auto" and not what the config says, at their lines."""
    document = tree.value.get("deepspeed")
    if document is None or not isinstance(config.deepspeed, dict):
        return []
    found = mismatches(config.deepspeed, said_in(config))
    for error in found:
        node = at(tree, tuple(str(error.key).split("."))) or document
        error.file, error.line = node.origin.file, node.origin.line
    return found


def _pin(
    keys: dict[str, Node], document: Node, key: str, path: tuple[str, ...], value: int | str | None
) -> BadInput | None:
    """Write one pin, unless the config says the same key itself; two different answers are an error."""
    said, place = keys.get(key), at(document, path)
    if value is None or (place is None and said is not None and said.value != "auto" and key != "zero_stage"):
        return None
    if said is None or said.value in ("auto", value):
        if said is None or said.value == "auto":
            keys[key] = grown(value, (place or document).origin)
        return None
    where = (place or document).origin.text()
    message = f"{key} is {said.value} here and {value} in the DeepSpeed config ({where})"
    return error_at(said.origin, key, message, value=said.value, fix=f"leave {key} out, or change `deepspeed:`")


def _without(keys: dict[str, Node], key: str) -> dict[str, Node]:
    return {name: node for name, node in keys.items() if name != key}


def _read_file(said: Node, config_file: Path | None) -> tuple[Node, tuple[str, ...]]:
    name = str(said.value)
    path = find_file(name, config_file)
    folder, _, last = name.rpartition("/")
    if path is None and folder.endswith("deepspeed_configs") and last in AXOLOTL_FILES:
        ours = f"ds_configs/{AXOLOTL_FILES[last]}"
        note = f"{said.origin.text()}: Axolotl's {name} is not here; {ours} is used"
        return _document(said, find_file(ours, config_file)), (note,)
    return _document(said, path), ()


def _document(said: Node, path: Path | None) -> Node:
    if path is None:
        fix = "ds_configs/zero3.json ships with dtrain, as do zero0, zero1, zero2, zero2_offload, zero3_offload"
        raise error_at(said.origin, "deepspeed", "no such file", value=said.value, fix=fix)
    try:
        text = read_small(path, "deepspeed").decode("utf-8")
        json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"not JSON: {error.msg}", file=str(path), line=error.lineno, key="deepspeed") from None
    except (OSError, ValueError, RecursionError) as error:
        words = getattr(error, "strerror", None) or "not UTF-8 JSON text"
        raise BadInput(f"cannot be read: {words}", file=str(path), key="deepspeed") from None
    tree, errors = read(text.expandtabs(2), Origin("file", str(path)))  # JSON is YAML, but for tabs
    if errors:
        raise errors[0]
    if not tree.is_mapping:
        raise BadInput("a DeepSpeed config is a JSON object", file=str(path), key="deepspeed")
    return tree


def _unknown_keys(document: Node) -> Iterator[BadInput]:
    for key, node in document.value.items():
        dotted_key = f"deepspeed.{key}"
        if key in OTHER_LOOPS:
            yield error_at(node.origin, dotted_key, "dtrain's loop does not run with this section", fix="leave it out")
        elif key not in KNOWN_KEYS:
            meant = nearest(key, KNOWN_KEYS)
            fix = f"did you mean `{meant}`?" if meant else "leave it out"
            yield error_at(node.origin, dotted_key, "not a key of DeepSpeed's config", value=key, fix=fix)


def _bad_pins(document: Node) -> Iterator[BadInput]:
    stage = at(document, _PINNED["zero_stage"])
    if stage is not None and stage.value != "auto" and not (type(stage.value) is int and 0 <= stage.value <= 3):
        key = "deepspeed.zero_optimization.stage"
        yield error_at(stage.origin, key, "not a ZeRO stage", value=stage.plain(), allowed="0 | 1 | 2 | 3")
    for name in ("offload_optimizer", "offload_params"):
        device = at(document, _PINNED[name])
        if device is not None and device.value not in ("none", "cpu", "nvme"):
            key = "deepspeed." + ".".join(_PINNED[name])
            yield error_at(device.origin, key, "not a device", value=device.plain(), allowed="none | cpu | nvme")
