"""Keys that are valid, and change nothing beside the others: told, so that nobody trusts in them.

A key counts as said when its value is not its default: in a run's own `config.yaml` every key is written out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dtrain.config.schema import Config, Dataset, Section

_DECAYING = ("cosine", "linear", "wsd")
_WITHOUT_BETAS = ("sgd", "adafactor")


def _no_held_out_data(config: Config) -> bool:
    return not config.val_set_size and not config.test_datasets


_IDLE: tuple[tuple[str, Callable[[Config], bool], str], ...] = (  # keys, when they are idle, why
    (
        """lora_r lora_alpha lora_dropout lora_target_modules lora_target_linear lora_modules_to_save peft_use_rslora
        peft_use_dora""",
        lambda config: config.adapter is None,
        "there is no `adapter`: every weight is trained",
    ),
    (
        "bnb_4bit_quant_type bnb_4bit_use_double_quant",
        lambda config: not config.load_in_4bit,
        "`load_in_4bit` is not set",
    ),
    ("cosine_min_lr_ratio", lambda config: config.lr_scheduler not in _DECAYING, "this `lr_scheduler` never decays"),
    ("lr_decay_ratio", lambda config: config.lr_scheduler != "wsd", "`lr_scheduler` is not wsd"),
    ("adam_beta1 adam_beta2", lambda config: config.optimizer in _WITHOUT_BETAS, "this `optimizer` has none"),
    (
        "adam_epsilon",
        lambda config: config.optimizer in _WITHOUT_BETAS or "lion" in config.optimizer,
        "this `optimizer` has none",
    ),
    ("num_epochs", lambda config: config.max_steps is not None, "`max_steps` decides alone"),
    ("val_set_size", lambda config: config.test_datasets is not None, "`test_datasets` is what is held out"),
    ("eval_batch_size eval_sample_packing", _no_held_out_data, "there is no held-out data"),
    (
        "loss_watchdog_patience",
        lambda config: config.loss_watchdog_threshold is None and config.loss_watchdog_action == "stop",
        "there is no `loss_watchdog_threshold`",
    ),
    ("sample_max_new_tokens", lambda config: not config.sample_prompts, "there are no `sample_prompts`"),
    ("cross_entropy_chunks", lambda config: config.cross_entropy == "eager", "the logits are made whole"),
    ("tokenizer_config", lambda config: config.train_tokenizer is not None, "`train_tokenizer` makes a new one"),
    (
        "chat_template_jinja",
        lambda config: config.chat_template not in (None, "jinja", "tokenizer_default"),
        "`chat_template` names another one",
    ),
    (
        "wandb_entity wandb_name wandb_run_id",
        lambda config: config.use_wandb is None and not config.wandb_project,
        "W&B is on with `wandb_project` or `use_wandb: true`",
    ),
)

_CHAT = "field_messages message_property_mappings roles roles_to_train train_on_eos chat_template"
_IDLE_IN_A_DATASET: tuple[tuple[str, Callable[[Dataset], bool], str], ...] = (
    (_CHAT, lambda dataset: dataset.type != "chat_template", "`type` is not chat_template"),
    ("field", lambda dataset: dataset.type != "completion", "`type` is not completion"),
)


def idle_keys(config: Config) -> Iterator[str]:
    """A note for each reason why keys that somebody said change nothing."""
    for keys, is_idle, why in _IDLE:
        yield from _note(config, keys, is_idle(config), "", why)
    for name in ("datasets", "test_datasets"):
        for index, dataset in enumerate(getattr(config, name) or ()):
            for keys, changes_nothing, why in _IDLE_IN_A_DATASET:
                yield from _note(dataset, keys, changes_nothing(dataset), f"{name}[{index}].", why)


def _note(section: Section, keys: str, is_idle: bool, place: str, why: str) -> Iterator[str]:
    fields = type(section).model_fields
    said = [place + key for key in keys.split() if getattr(section, key) != fields[key].default]
    if is_idle and said:
        yield f"without effect: {', '.join(said)} ({why})"
