"""Every key a dtrain YAML may have. Axolotl's names are our names; the aliases live in `axolotl.py`.

Closed at every depth: an unknown key is an error (only `launchers.NAME.extra` is open). Frozen: nothing
changes after loading. A docstring under a field says what it means, its unit, and what leaving it out does.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A part of the file: closed, frozen, its fields documented by the docstrings under them."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


# --- data ---------------------------------------------------------------------------------------------------------


class PromptFormat(Section):
    """Axolotl's user-defined `type:`, how one row becomes a prompt and an output (axolotl user_defined.py)."""

    system_prompt: str = ""
    """The system text of rows without a system column."""
    system_format: str = "{system}"
    field_system: str = "system"
    field_instruction: str = "instruction"
    field_input: str = "input"
    field_output: str = "output"
    format: str = "{instruction} {input} "
    """The prompt of a row whose input is not empty; literal braces are doubled."""
    no_input_format: str = "{instruction} "
    """The prompt of a row without input."""


class MessageMapping(Section):
    """Which columns of a message hold its role and its text."""

    role: str = "role"
    content: str = "content"


class Dataset(Section):
    """One source of rows."""

    path: str
    """A local file or folder (json, jsonl, parquet, csv) or a hub name."""
    name: str | None = None
    """The configuration of a hub dataset."""
    data_files: str | list[str] | None = None
    split: str | None = None
    """Which split; default `train`. Slices such as `train[:100]` work."""
    revision: str | None = None
    ds_type: Literal["json", "parquet", "csv", "arrow"] | None = None
    """The file format, where the name does not tell."""
    type: PromptFormat | str = "alpaca"
    """A user-defined mapping, or `alpaca`, `chat_template`, `completion`."""
    field: str | None = None
    """`completion`: the column with the text; default `text`."""
    field_messages: str = "messages"
    message_property_mappings: MessageMapping | None = None
    roles: dict[str, list[str]] | None = None
    """Other names of roles: `{assistant: [gpt, model]}`."""
    roles_to_train: list[str] | None = None
    """Whose turns are trained; default `[assistant]`."""
    train_on_eos: Literal["all", "turn", "last", "none"] = "turn"
    chat_template: str | None = None
    """Overrides the file's chat template for this dataset."""
    train_on_inputs: bool | None = None
    """Overrides the file's `train_on_inputs` for this dataset."""
    shards: Count | None = None
    """Take only every n-th part of the rows, to try things out: the first of `shards` parts."""


class SpecialTokens(Section):
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    additional_special_tokens: list[str] | None = None


class TrainTokenizer(Section):
    """Train a byte-level BPE tokenizer on the run's own training text (for models that start from random weights)."""

    vocab_size: Count = 2048


# --- machine and memory -------------------------------------------------------------------------------------------


class GradientCheckpointingKwargs(Section):
    use_reentrant: bool | None = None


class PlanAs(Section):
    """How another framework would hold things, to plan for it; `launch` refuses a file that has it."""

    sharding: Literal["zero0", "zero1", "zero2", "zero3", "fsdp2", "ddp"] | None = None
    reshard_after_forward: bool = True
    replicate_size: Count = 1
    master_weights: Literal["fp32", "none"] | None = None
    gradient_dtype: Literal["fp32", "bf16", "fp16"] | None = None
    optimizer_state_dtype: Literal["fp32", "bf16", "fp16", "int8", "int4"] | None = None
    base_weights_dtype: Literal["fp32", "bf16", "fp16", "int8", "nf4"] | None = None
    optimizer_in_backward: bool = False
    sequence_sharded: bool | None = None
    """Tensor-parallel ranks hold parts of the sequence between blocks (Megatron's `--sequence-parallel`; torchtitan
    always): default true under fsdp2, false under ZeRO."""


class AttentionPattern(Section):
    """Sparse attention: which earlier tokens of its document a token sees. The same in all layers and heads."""

    kind: Literal["sliding", "longformer", "bigbird"]
    """sliding: a window; longformer: a window and global tokens; bigbird: both, and blocks drawn at random."""
    window: Count = 512
    """Tokens, its own counted."""
    global_tokens: Annotated[int, Field(ge=0)] = 0
    """The first tokens of a document, which all later ones see."""
    random_blocks: Annotated[int, Field(ge=0)] = 0
    """Earlier blocks that each block of tokens sees besides."""
    block_tokens: Count = 64
    seed: int = 0
    """Of the draw."""


class RopeScaling(Section):
    """Rotary positions beyond those a model was trained for; names and defaults are transformers' own."""

    type: Literal["linear", "dynamic", "yarn", "llama3"]
    """dynamic: by each row's own length; needs `micro_batch_size: 1` and no packing."""
    factor: Annotated[float, Field(ge=1)]
    """Positions become so many times the original ones."""
    original_max_position_embeddings: Count | None = None
    """Default: what the model's config says."""
    attention_factor: Annotated[float, Field(gt=0)] | None = None
    """yarn"""
    beta_fast: Annotated[float, Field(gt=0)] | None = None
    """yarn"""
    beta_slow: Annotated[float, Field(gt=0)] | None = None
    """yarn"""
    low_freq_factor: Annotated[float, Field(gt=0)] | None = None
    """llama3; default 1"""
    high_freq_factor: Annotated[float, Field(gt=0)] | None = None
    """llama3; default 4"""


class LauncherOptions(Section):
    """What one launcher is told. Each launcher checks its own keys; `extra` is passed on as it is."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    extra: Any = None


Attention = Literal["auto", "flash_attention_3", "flash_attention_2", "varlen", "flex", "sdpa", "eager"]
CrossEntropy = Literal["auto", "eager", "chunked", "compiled", "fused"]
Checkpointing = Literal["none", "full", "selective", "offload", "auto"]
OptimizerName = Literal[
    "adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adamw_torch_8bit",
    "adamw_torch_4bit", "adamw_torch_fp8", "lion_8bit", "paged_lion_8bit", "lion_32bit", "paged_lion_32bit",
    "adafactor", "muon", "sgd",
]  # fmt: skip


class Config(Section):
    """A run, as the person said it."""

    name: str | None = None
    """The run's name; default: the file's name without its ending."""

    # model
    base_model: str
    """A hub name, or a folder with a model; one that holds only `config.json` is enough to plan."""
    revision_of_model: str | None = None
    model_type: str | None = None
    """The class in transformers; default AutoModelForCausalLM. Checked against the model, never guessed."""
    tokenizer_type: str | None = None
    tokenizer_config: str | None = None
    """A tokenizer from elsewhere than `base_model`."""
    tokenizer_use_fast: bool = True
    train_tokenizer: TrainTokenizer | None = None
    trust_remote_code: bool = False
    reinit_weights: bool = False
    """Start from random weights drawn with `seed`."""
    special_tokens: SpecialTokens | None = None
    tokens: list[str] | None = None
    """Tokens to add to the vocabulary."""
    chat_template: str | None = None
    """`tokenizer_default`, `chatml`, `tokenizer_default_fallback_chatml`, a name of the tokenizer's own, or `jinja`;
    default: the tokenizer's own."""
    chat_template_jinja: str | None = None

    # data
    datasets: list[Dataset] = Field(min_length=1)
    test_datasets: list[Dataset] | None = None
    val_set_size: Annotated[float, Field(ge=0)] = 0.0
    """Rows held out: a share below 1, or a number of rows."""
    dataset_prepared_path: str | None = None
    """Where tokenised data is cached; default: in `$DTRAIN_HOME`."""
    sequence_len: Count = 512
    """The window in tokens. Axolotl's default is ours, so that its files mean the same."""
    rope_scaling: RopeScaling | None = None
    """For windows beyond the model's positions. The model folder at the end carries it."""
    sample_packing: bool = False
    eval_sample_packing: bool | None = None
    train_on_inputs: bool = False
    excess_length_strategy: Literal["drop", "truncate", "raise"] = "drop"
    min_sample_len: Count = 2
    shuffle: bool = True
    """False keeps the rows in file order, packed or not."""
    dataset_exact_deduplication: bool = False
    seed: int = 42

    # batch
    micro_batch_size: Count | Auto = "auto"
    """Samples (packed rows when packing) per GPU per forward pass."""
    gradient_accumulation_steps: Count | None = None
    batch_size: Count | None = None
    """Samples per GPU per optimizer step: accumulation = batch_size / micro_batch_size."""
    global_batch_size: Count | None = None
    """Samples per optimizer step over all GPUs, kept constant on any hardware."""
    eval_batch_size: Count | None = None
    num_epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Count | None = None
    """Ends the run after so many optimizer steps; decides alone where it is said, also beyond `num_epochs`."""

    # optimizer
    optimizer: OptimizerName = "adamw_torch"
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Clip the global gradient norm to this; 0 turns clipping off."""
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup", "wsd"] = "cosine"
    """`wsd`: warm up, stay, decay linearly over the last `lr_decay_ratio` of the steps."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    warmup_ratio: Fraction | None = None
    """Neither given: the smaller of 3 % of the steps and 100 (Axolotl's default); 0 for `constant`."""
    cosine_min_lr_ratio: Fraction = 0.0
    """The learning rate ends at this share of its peak (cosine, linear and wsd)."""
    lr_decay_ratio: Fraction = 0.2

    # precision
    bf16: bool | Auto = "auto"
    """auto: bf16 where the device has it, else fp16; fp32 on a CPU unless said otherwise."""
    fp16: bool | Auto = False
    tf32: bool | Auto = False
    fp8: bool = False
    master_weights: Literal["fp32", "bf16"] | None = None
    """The optimizer's own copy of the weights, with its moments and summed gradients; fp32 unless said. bf16 takes 10
    bytes a parameter in all, where fp32 takes 18 to 20; a step smaller than 1/256 of a weight is lost in it
    (docs/precision.md)."""

    # memory and parallelism
    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    deepspeed: str | dict[str, Any] | None = None
    """A DeepSpeed JSON file or an inline mapping; its "auto" values are filled in by dtrain."""
    offload_optimizer: Literal["auto", "none", "cpu", "nvme"] = "auto"
    offload_params: Literal["auto", "none", "cpu", "nvme"] = "auto"
    nvme_path: str | None = None
    """A folder on a local drive of each node, for what `nvme` offloads. The run's own folder in it goes at its end."""
    gradient_checkpointing: Checkpointing = "auto"
    gradient_checkpointing_kwargs: GradientCheckpointingKwargs | None = None
    attention: Attention = "auto"
    attention_pattern: AttentionPattern | None = None
    """Train with sparse attention. The model folder at the end says so to `dtrain generate`; other libraries that read
    it attend to everything."""
    segment_memory: Count | None = None
    """Transformer-XL's recurrence: rows are cut into segments of so many tokens; a token sees its segment and the one
    before it, whose keys and values pass no gradient."""
    cross_entropy: CrossEntropy = "auto"
    cross_entropy_chunks: Count | Auto = "auto"
    sequence_parallel_size: Count = 1
    """Neighbouring ranks that share each row of tokens (Ulysses; docs/long_sequences.md). Not given: as many as it
    takes to fit, where nothing else does."""
    tensor_parallel_size: Count = 1
    """Neighbouring ranks that share each layer's matrices (AutoTP), at ZeRO 0 to 2."""
    tiled_mlp: bool = False
    torch_compile: bool = False
    plan_as: PlanAs | None = None

    # adapters
    adapter: Literal["lora", "qlora"] | None = None
    lora_r: Count = 8
    lora_alpha: Annotated[float, Field(gt=0)] = 16
    lora_dropout: Fraction = 0.0
    lora_target_modules: list[str] | str | None = None
    lora_target_linear: bool = False
    """Adapt every linear layer but the head."""
    lora_modules_to_save: list[str] | None = None
    peft_use_rslora: bool = False
    peft_use_dora: bool = False
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = True

    # evaluation, saving, logging
    eval_steps: Count | None = None
    evals_per_epoch: Count | None = None
    early_stopping_patience: Count | None = None
    """Stop after this many evaluations without a better held-out loss."""
    loss_watchdog_threshold: Annotated[float, Field(gt=0)] | None = None
    """A training loss above this, `loss_watchdog_patience` times in a row, ends the run. A loss that is no number ends
    it at once, whatever is said here. Looked at when a step logs or saves; at every step with action `pass` or
    `skip`."""
    loss_watchdog_patience: Count = 3
    loss_watchdog_action: Literal["stop", "pass", "skip"] = "stop"
    """`skip`: a step whose loss is above the threshold, or no number, makes no update; so many in a row as
    `loss_watchdog_patience` are skipped, one more ends the run. It waits for the device at every step. `pass`: the next
    life (`max_restarts`, or `dtrain resume`) goes on from the checkpoint before the bad steps, and past them. Either
    way they are counted in the metrics, and their rows named in passed.json."""
    save_steps: Count | None = None
    saves_per_epoch: Count | None = None
    save_total_limit: Count | None = None
    """Keep this many checkpoints; default 2."""
    save_every: Literal["auto", "end"] = "auto"
    """Where neither `save_steps` nor `saves_per_epoch` is given: at the interval that loses least time to failures and
    to saving together (Daly 2006; the first save, after the first step, measures its cost), or only at the end."""
    hours_between_failures: Annotated[float, Field(gt=0)] | None = None
    """For `save_every: auto`: mean hours until some machine of the run fails or is taken away; default: Llama 3's rate,
    one failure in 50,677 GPU hours. A spot machine needs a smaller number."""
    hang_seconds: Annotated[float, Field(gt=0)] = 300.0
    """A rank that for so long gets no further (not through one forward or backward pass, one optimizer step, one
    collective) hangs: the run ends, with the stacks of all ranks in their logs."""
    max_restarts: Annotated[int, Field(ge=0)] = 0
    """How often a failed run is started again from its last checkpoint, on the same machines, before it ends. Several
    SSH hosts do so by themselves, each from its own part of the checkpoint."""
    probe: bool = False
    """Before the first step, take two at the longest batch, measure memory and time beside the plan (probe.json), and
    undo them to the last bit. `dtrain launch --probe` says it too."""
    on_oom: Literal["stop", "replan"] = "stop"
    """A rank that runs out of memory ends the run, and the message names the next layout that fits. `replan`: that one
    is taken, from the last checkpoint on, with the same global batch (smaller micro-batches, recomputing, sharding,
    offloading), on one machine and in a SLURM job."""
    save_keep_hours: Annotated[float, Field(gt=0)] | None = None
    """Besides the newest and the best, keep a checkpoint of every so many hours."""
    logging_steps: Count = 1
    sample_prompts: list[str] | None = None
    """Prompts the trained model answers at the end of the run, as the last word of its report."""
    sample_max_new_tokens: Count = 128
    output_dir: str | None = None
    """Where the model lies at the end; default `runs/NAME-ID`."""

    # tracking
    use_wandb: bool | None = None
    wandb_project: str | None = None
    wandb_entity: str | None = None
    wandb_name: str | None = None
    wandb_run_id: str | None = None
    wandb_mode: Literal["online", "offline", "disabled"] | None = None

    # launching
    launchers: dict[str, LauncherOptions] = Field(default_factory=dict)
    """Options of each launcher by its name."""
