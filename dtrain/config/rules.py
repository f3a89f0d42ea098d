"""Keys that contradict each other, and what a reader should know about a valid config."""

from __future__ import annotations

from collections.abc import Iterator

from dtrain.config.schema import Config
from dtrain.config.tree import Node, error_at
from dtrain.errors import BadInput

_ONE_OF: tuple[tuple[str, str, str], ...] = (
    ("gradient_accumulation_steps", "batch_size", "batch_size / micro_batch_size is the accumulation"),
    ("global_batch_size", "batch_size", "global_batch_size = batch_size × GPUs"),
    ("global_batch_size", "gradient_accumulation_steps", "the accumulation follows from global_batch_size"),
    ("warmup_steps", "warmup_ratio", "warmup_ratio is a share of all steps"),
    ("eval_steps", "evals_per_epoch", "both say when to evaluate"),
    ("attention_pattern", "segment_memory", "both say how far a token looks back"),
    ("save_steps", "saves_per_epoch", "both say when to save"),
    ("master_weights", "plan_as", "plan_as has master_weights of its own"),
)
"""Pairs of keys that say one thing in two ways."""


def contradictions(tree: Node) -> list[BadInput]:
    """Every contradiction between keys of the translated tree; types may still be wrong there."""
    keys: dict[str, Node] = tree.value
    rules = (
        _said_twice,
        _precision,
        _adapters,
        _needs,
        _sharding,
        _another_frameworks,
        _multiples,
        _recomputation,
        _rope,
    )
    return [error for rule in rules for error in rule(keys)]


def _said_twice(keys: dict[str, Node]) -> Iterator[BadInput]:
    for one, other, why in _ONE_OF:
        if one in keys and other in keys:
            yield _against(keys, one, other, f"cannot stand beside {other}: {why}", "keep one of them")


def _against(keys: dict[str, Node], one: str, other: str, message: str, fix: str) -> BadInput:
    """Points at the later of two keys and names where the other one is. A flag is later than the file."""
    late, early = sorted((one, other), key=lambda key: (keys[key].origin.kind == "flag", keys[key].origin.line or 0))[
        ::-1
    ]
    if late != one:
        message = message.replace(f"beside {other}", f"beside {one}")
    if keys[late].origin.kind == "flag":
        fix = f"{fix}: `--set {early}=null` unsets the file's"
    return error_at(keys[late].origin, late, f"{message} ({early}: {keys[early].origin.text()})", fix=fix)


def _is(keys: dict[str, Node], key: str, *values: object) -> bool:
    return key in keys and any(keys[key].value is value or keys[key].value == value for value in values)


def _precision(keys: dict[str, Node]) -> Iterator[BadInput]:
    if _is(keys, "bf16", True) and _is(keys, "fp16", True):
        yield _against(
            keys, "bf16", "fp16", "cannot stand beside fp16: one precision at a time", "keep one, or bf16: auto"
        )


def _adapters(keys: dict[str, Node]) -> Iterator[BadInput]:
    four, eight = _is(keys, "load_in_4bit", True), _is(keys, "load_in_8bit", True)
    if four and eight:
        message = "cannot stand beside load_in_8bit: one quantization at a time"
        yield _against(keys, "load_in_4bit", "load_in_8bit", message, "keep one of them")
    if _is(keys, "adapter", "qlora") and not four:
        yield error_at(keys["adapter"].origin, "adapter", "qlora needs a 4-bit base model", fix="load_in_4bit: true")
    if (four or eight) and "adapter" not in keys:
        key = "load_in_4bit" if four else "load_in_8bit"
        fix = f"adapter: {'qlora' if four else 'lora'}"
        yield error_at(keys[key].origin, key, "quantized weights cannot be trained without an adapter", fix=fix)


def _needs(keys: dict[str, Node]) -> Iterator[BadInput]:
    if _is(keys, "chat_template", "jinja") and "chat_template_jinja" not in keys:
        fix = "put the template under chat_template_jinja: |"
        yield error_at(keys["chat_template"].origin, "chat_template", "jinja needs chat_template_jinja", fix=fix)
    held_out = "test_datasets" in keys or ("val_set_size" in keys and not _is(keys, "val_set_size", 0))
    key = "early_stopping_patience"
    if key in keys and not held_out:
        fix = "val_set_size: 0.05, or test_datasets"
        yield error_at(keys[key].origin, key, "there is no held-out data whose loss could stop the run", fix=fix)


def _sharding(keys: dict[str, Node]) -> Iterator[BadInput]:
    """What DeepSpeed can offload depends on what it shards (ZeRO-Offload needs stage 1, parameters stage 3)."""
    stage = keys["zero_stage"].value if "zero_stage" in keys else "auto"
    for key, least in (("offload_optimizer", 1), ("offload_params", 3)):
        if type(stage) is int and stage < least and _is(keys, key, "cpu", "nvme"):
            message = (
                f"needs zero_stage {least} or more, and zero_stage is {stage} ({keys['zero_stage'].origin.text()})"
            )
            yield error_at(keys[key].origin, key, message, value=keys[key].value, fix=f"zero_stage: 3, or {key}: none")


SHARDING = {"zero0": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp2": 3, "ddp": 0}
"""Another framework's sharding (`plan_as.sharding`) → the ZeRO stage that holds the same."""


def _another_frameworks(keys: dict[str, Node]) -> Iterator[BadInput]:
    said = keys["plan_as"].value if "plan_as" in keys else None
    meant = said.get("sharding") if isinstance(said, dict) else None
    stage = keys["zero_stage"].value if "zero_stage" in keys else "auto"
    if type(stage) is int and meant is not None and SHARDING.get(str(meant.value), stage) != stage:
        message = f"cannot stand beside plan_as.sharding {meant.value}, which shards otherwise ({meant.origin.text()})"
        yield error_at(keys["zero_stage"].origin, "zero_stage", message, value=stage, fix="leave one of them out")


def _recomputation(keys: dict[str, Node]) -> Iterator[BadInput]:
    if _is(keys, "tiled_mlp", True) and _is(keys, "gradient_checkpointing", "selective"):
        why = (
            "cannot stand beside gradient_checkpointing: selective keeps matmuls' outputs, and tiles have none to keep"
        )
        yield _against(keys, "tiled_mlp", "gradient_checkpointing", why, "gradient_checkpointing: full, or offload")
    blocky = (
        "attention_pattern" if "attention_pattern" in keys else "attention" if _is(keys, "attention", "flex") else ""
    )
    if blocky and _is(keys, "gradient_checkpointing", "selective"):
        why = "cannot stand beside gradient_checkpointing: selective knows no output of flex_attention to keep"
        yield _against(keys, blocky, "gradient_checkpointing", why, "gradient_checkpointing: full, or offload")


_ROPE_KEYS = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
}


def _rope(keys: dict[str, Node]) -> Iterator[BadInput]:
    """Each kind's own keys; and dynamic scaling, whose frequencies follow from the longest row of a micro-batch."""
    said = keys["rope_scaling"].value if "rope_scaling" in keys else None
    if not isinstance(said, dict) or "type" not in said:
        return
    kind = said["type"].value
    for owner, names in _ROPE_KEYS.items():
        for name in names:
            if owner != kind and name in said:
                message, fix = f"is a key of {owner}, and type is {kind}", f"leave it out, or type: {owner}"
                yield error_at(said[name].origin, f"rope_scaling.{name}", message, fix=fix)
    if kind == "dynamic" and (_is(keys, "sample_packing", True) or not _is(keys, "micro_batch_size", 1)):
        message = "dynamic scaling depends on a row's length, so rows cannot share a micro-batch"
        fix = "micro_batch_size: 1 and sample_packing: false, or type: yarn"
        yield error_at(said["type"].origin, "rope_scaling.type", message, value=kind, fix=fix)
    if "adapter" in keys and keys["adapter"].value is not None:
        message = "an adapter's folder names its base model, whose config.json would not carry the scaling"
        fix = "leave adapter out, or write rope_parameters into a copy of the base model's config.json"
        yield error_at(keys["rope_scaling"].origin, "rope_scaling", message, fix=fix)


def _multiples(keys: dict[str, Node]) -> Iterator[BadInput]:
    micro, batch = (keys[key].value if key in keys else None for key in ("micro_batch_size", "batch_size"))
    if type(micro) is int and type(batch) is int and micro > 0 and batch % micro:
        below, above = batch // micro * micro, -(-batch // micro) * micro
        message = f"batch_size {batch} is not a multiple of micro_batch_size {micro}"
        allowed = " or ".join(str(size) for size in (below, above) if size)
        yield error_at(keys["batch_size"].origin, "batch_size", message, value=batch, allowed=allowed)


def remarks(config: Config) -> tuple[str, ...]:
    """What a reader should know about a valid config: the batch arithmetic, evaluations that cannot happen."""
    return (*_batch_in_words(config), *_never_evaluated(config))


def _batch_in_words(config: Config) -> Iterator[str]:
    micro, batch = config.micro_batch_size, config.batch_size
    if batch is not None:
        told = f"batch_size {batch} is samples per GPU per optimizer step"
        yield f"{told}: accumulation = {batch} / micro_batch_size {micro}" + (
            f" = {batch // micro}" if micro != "auto" else ""
        )


def _never_evaluated(config: Config) -> Iterator[str]:
    said = [key for key in ("eval_steps", "evals_per_epoch") if getattr(config, key) is not None]
    if said and not config.val_set_size and not config.test_datasets:
        yield f"{said[0]}: there is no held-out data (val_set_size, test_datasets), so nothing is evaluated"
