"""One table of every key that Axolotl 0.18 has and dtrain has not, and of its other spellings of our keys.

Source of the names: axolotl 0.18.0 (commit 067b021c8), its pydantic schema, the arguments of its plugins, and its
252 example files. A key that is in no table and is not ours is an error, so nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from dtrain.config import moves
from dtrain.config.alias import Alias, Harmless, Lookalike, Moved, Ours, Refused, Rule, Switch, Table, Work, applied
from dtrain.config.origins import KeyPath
from dtrain.config.tree import Node
from dtrain.errors import BadInput


@dataclass(frozen=True)
class Translated:
    """The tree in our own key names, what there is to say about it, and what cannot be translated."""

    tree: Node
    notes: tuple[str, ...]
    errors: list[BadInput]


def translate(tree: Node) -> Translated:
    """Every alias applied, at the top level and in each dataset. `tree.value` is a mapping."""
    top = Work(dict(tree.value))
    applied(top, KEYS)
    works = [top]
    for name in ("datasets", "test_datasets"):
        rows = top.keys.get(name)
        if rows is not None and isinstance(rows.value, list):
            inside = [_dataset(row, (name, index)) for index, row in enumerate(rows.value)]
            works += [work for work, _ in inside]
            top.keys[name] = replace(rows, value=[row for _, row in inside])
    notes = tuple(chain.from_iterable(_notes(work) for work in works))
    errors = list(chain.from_iterable(work.errors for work in works))
    return Translated(replace(tree, value=top.keys), notes, errors)


def names() -> Iterable[str]:
    """Every name that is known at the top level beside ours."""
    return KEYS


def _dataset(row: Node, place: KeyPath) -> tuple[Work, Node]:
    if not isinstance(row.value, dict):
        return Work({}, place), row
    work = Work(dict(row.value), place)
    applied(work, DATASET_KEYS)
    return work, replace(row, value=work.keys)


def _notes(work: Work) -> Iterator[str]:
    yield from work.notes
    for why, keys in work.left_out.items():
        yield f"read and left out: {', '.join(keys)} ({why})"


def _each(keys: str, rule: Rule) -> Iterator[tuple[str, Rule]]:
    return ((key, rule) for key in keys.split())


_NO_ZERO = Ours({0: None, "": None})
_ATTENTION = {"flex_attention": "flex", "flash": "flash_attention_2", "sdp": "sdpa", "xformers": "sdpa"} | {
    f"kernels-community/{hub}": ours
    for hub, ours in (
        ("flash-attn2", "flash_attention_2"),
        ("flash-attn3", "flash_attention_3"),
        ("vllm-flash-attn3", "flash_attention_3"),
    )
}
_OPTIMIZERS = {
    "adamw_8bit": "adamw_bnb_8bit", "paged_adamw": "paged_adamw_32bit", "ao_adamw_8bit": "adamw_torch_8bit",
    "ao_adamw_4bit": "adamw_torch_4bit", "ao_adamw_fp8": "adamw_torch_fp8", "adamw_hf": "adamw_torch",
    "lion": "lion_32bit", "paged_lion": "paged_lion_32bit",
}  # fmt: skip
"""transformers.training_args.OptimizerNames and Axolotl's CustomSupportedOptimizers: names of one optimizer."""

_TEMPLATE = "chat_template; launch refuses the names of Axolotl's own files, but for chatml"
_SPELLINGS: dict[str, Rule] = {
    "sequence_length": Alias("sequence_len", note="Axolotl drops it in silence and trains at 512"),
    "sequence_parallel_degree": Alias("sequence_parallel_size"),
    "context_parallel_size": Alias("sequence_parallel_size"),
    "model_revision": Alias("revision_of_model"),
    "type_of_model": Alias("model_type"),
    "bfloat16": Alias("bf16"),
    "float16": Alias("fp16"),
    "float32": Moved(moves.float32, "bf16, fp16"),
    "attn_implementation": Alias("attention", _ATTENTION),
    "flash_attention": Switch("attention", "flash_attention_2"),
    "flex_attention": Switch("attention", "flex"),
    "sdp_attention": Switch("attention", "sdpa"),
    "eager_attention": Switch("attention", "eager"),
    "xformers_attention": Switch("attention", "sdpa", "the same attention by torch's own kernels"),
    "chunked_cross_entropy": Switch("cross_entropy", "chunked"),
    "chunked_cross_entropy_num_chunks": Alias("cross_entropy_chunks"),
    "eval_max_new_tokens": Alias("sample_max_new_tokens"),
    "generation_max_new_tokens": Alias("sample_max_new_tokens"),
    "evaluation_strategy": Moved(moves.strategy, "eval_steps, evals_per_epoch"),
    "eval_strategy": Moved(moves.strategy, "eval_steps, evals_per_epoch"),
    "save_strategy": Moved(moves.strategy, "save_steps, saves_per_epoch"),
    "tokens": Moved(moves.tokens, "special_tokens"),
    "activation_offloading": Moved(moves.recompute_and_offload, "gradient_checkpointing"),
    "selective_checkpointing": Moved(moves.selective, "gradient_checkpointing"),
    "fsdp": Moved(moves.fsdp, "zero_stage, offload_optimizer, offload_params"),
    "fsdp_config": Moved(moves.fsdp_config, "zero_stage, offload_optimizer, offload_params, gradient_checkpointing"),
    "bnb_config_kwargs": Moved(moves.quantization_kwargs, "bnb_4bit_quant_type, bnb_4bit_use_double_quant"),
    "base_model_config": Moved(moves.base_model_config, "base_model"),
    "eval_sequence_len": Moved(moves.eval_sequence_len, "sequence_len"),
    "plugins": Moved(moves.plugins, "nothing"),
    "chat_template": Moved(moves.chat_template, _TEMPLATE),
    "rope_scaling": Moved(moves.rope_scaling, "rope_scaling; its `rope_type` is read as `type`"),
    # our own keys, some values spelled otherwise
    "gradient_checkpointing": Ours({True: "full", False: "none"}),
    "optimizer": Ours(_OPTIMIZERS),
    "lr_scheduler": Ours({"warmup_stable_decay": "wsd"}),
    "torch_compile": Ours({"auto": None}),
    **dict(_each("eval_steps evals_per_epoch save_steps saves_per_epoch save_total_limit max_steps", _NO_ZERO)),
    **dict(_each("early_stopping_patience eval_batch_size", _NO_ZERO)),
    **dict(_each("adapter deepspeed", Moved(moves.unset_by_false, "our key; false or empty is not said"))),
    **dict(_each("wandb_project wandb_entity wandb_name wandb_run_id wandb_mode dataset_prepared_path", _NO_ZERO)),
}

_HARMLESS: tuple[tuple[str, str], ...] = (
    ("it picks kernels; dtrain picks its own, with the same results", """
        liger_rope liger_rms_norm liger_rms_norm_gated liger_layer_norm liger_swiglu liger_glu_activation
        liger_cross_entropy liger_fused_linear_cross_entropy liger_use_token_scaling cut_cross_entropy
        flash_attn_cross_entropy flash_attn_fuse_mlp flash_optimum flash_attn_d512 sdpa_varlen large_head_attention
        fused_attn_kernel gemma4_hybrid_attn_impl use_kernels lora_mlp_kernel lora_qkv_kernel lora_o_kernel
        lora_embedding_kernel experts_implementation expert_backend use_scattermoe use_sonicmoe use_dsv4_kernels
        use_glm_dsa_kernels moe_grouped_backend moe_dequant_chunk_size moe_bnb_fast flex_attn_compile_kwargs
        torch_compile_backend torch_compile_mode torch_compile_options tiled_mlp_num_shards
        tiled_mlp_use_original_mlp heads_k_stride ring_attn_func lora_fan_in_fan_out"""),
    ("how Axolotl packs, pads and loads; dtrain plans its own batches", """
        pad_to_sequence_len pad_to_multiple_of sample_packing_eff_est sample_packing_group_size
        sample_packing_bin_size sample_packing_mp_start_method sample_packing_seq_len_multiplier
        multipack_real_batches batch_flattening total_num_tokens total_supervised_tokens remove_unused_columns
        dataset_processes dataset_num_proc dataset_keep_in_memory num_dataset_shards_to_save skip_prepare_dataset
        dataloader_pin_memory dataloader_num_workers dataloader_prefetch_factor dataloader_drop_last
        shuffle_before_merging_datasets shuffle_merged_datasets preprocess_iterable is_preprocess
        pretrain_multipack_buffer_size streaming_multipack_buffer_size"""),
    ("the profile, the planner and torchrun decide it", """
        device device_map max_memory gpu_memory_limit low_cpu_mem_usage local_rank world_size ddp ddp_timeout
        ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters dp_shard_size dp_replicate_size fsdp_version
        fsdp_final_state_dict_type accelerator_config experimental_skip_move_to_device
        ray_num_workers ray_run_name resources_per_worker gc_steps gc_collect_steps torch_empty_cache_steps
        qlora_sharded_model_loading lora_on_cpu layer_offloading expert_parallel_backend
        expert_parallel_num_nvl_bytes expert_parallel_num_rdma_bytes expert_parallel_token_capacity
        expert_parallel_fallback_on_unsupported"""),
    ("reports go to metrics.jsonl, the terminal and Weights & Biases", """
        wandb_watch wandb_log_model use_tensorboard use_mlflow mlflow_tracking_uri mlflow_experiment_name
        mlflow_run_name hf_mlflow_log_artifacts use_comet comet_api_key comet_workspace comet_project_name
        comet_experiment_key comet_mode comet_online comet_experiment_config use_trackio trackio_project_name
        trackio_run_name trackio_space_id use_otel_metrics otel_metrics_host otel_metrics_port use_swanlab
        swanlab_project swanlab_experiment_name swanlab_description swanlab_mode swanlab_workspace swanlab_api_key
        swanlab_log_model swanlab_web_host swanlab_api_host swanlab_lark_webhook_url swanlab_lark_secret
        swanlab_log_completions swanlab_completion_log_interval swanlab_completion_max_buffer
        profiler_steps profiler_steps_start include_tokens_per_second include_tkps"""),
    ("an evaluation that dtrain does not run; `sample_prompts` lets the model answer at the end", """
        do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset bench_split eval_table_size
        generate_samples num_generation_samples generation_temperature generation_top_p generation_top_k
        generation_prompt_ratio generation_do_sample lm_eval_tasks lm_eval_batch_size lm_eval_post_train
        lm_eval_model gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens
        gradio_temperature"""),
    ("checkpoints are whole, can be resumed, and Ctrl-C saves one", """
        save_only_model save_first_step dynamic_checkpoint merge_lora merge_method"""),
    ("dtrain is always strict: an unknown key is an error", "strict"),
    ("a trained turn ends in the template's own end token", "eot_tokens"),
    ("the hub's own login is used (hf auth login, or HF_TOKEN)", "hf_use_auth_token"),
    ("Axolotl works it out by itself and so does dtrain", """
        is_falcon_derived_model is_llama_derived_model is_mistral_derived_model is_qwen_derived_model
        axolotl_config_path capabilities env_capabilities tokenizer_save_jinja_files"""),
)  # fmt: skip

UNKNOWN_TO_AXOLOTL = "nothing would have changed: Axolotl drops it in silence too"
"""Keys in its own example files that its schema does not know (checked by running)."""

_OTHER_TRAINING = "leave it out, or train this file with Axolotl"
_REFUSED: tuple[tuple[str, str, str], ...] = (  # what would have happened, what to do, the keys
    ("plain supervised training would have run", "dtrain trains on the next token only; " + _OTHER_TRAINING, """
        rl trl vllm ebft orpo_alpha simpo_gamma cpo_alpha kto_desirable_weight kto_undesirable_weight rl_beta
        dpo_beta dpo_use_weighting dpo_label_smoothing dpo_use_liger_kernel dpo_padding_free dpo_loss_type
        dpo_loss_weights dpo_use_logits_to_keep dpo_generate_during_eval dpo_norm_loss rpo_alpha
        precompute_ref_log_probs max_prompt_len reward_model process_reward_model center_rewards_coefficient
        num_labels diffusion trainer_cls hatchery nemo_gym_enabled nemo_gym_dir nemo_gym_auto_clone
        nemo_gym_config_paths nemo_gym_head_port nemo_gym_server_timeout nemo_gym_verify_timeout
        nemo_gym_run_timeout nemo_gym_datasets nemo_gym_auto_start nemo_gym_model_name nemo_gym_multi_turn
        nemo_gym_max_turns"""),
    ("the loss would have been plain cross-entropy", _OTHER_TRAINING, """
        use_eaft eaft_alpha eaft_k kd_trainer kd_ce_alpha kd_alpha kd_temperature kd_temperature_min kd_beta
        kd_normalize_topk kd_online_server_base_url kd_online_topk kd_online_server kd_online_timeout"""),
    ("the model would have kept its own config", "put the change into config.json of a local model folder", """
        model_config overrides_of_model_config model_kwargs overrides_of_model_kwargs cls_model_config
        model_quantization_config model_quantization_config_kwargs use_onebitllms dense_mixer
        llama4_linearized_experts scaling_softmax scaling_softmax_factor scaling_softmax_bias fp32_norms
        fp32_norm_classes embeddings_skip_upcast sage_attention s2_attention"""),
    ("the weights would have been trained without this quantization",
        "leave it out; `load_in_4bit: true` with `adapter: qlora` quantizes the linear layers", """
        gptq qat quantization quantize_moe_experts nonexpert_quantization nvfp4_merge_aware
        nvfp4_merge_aware_start_step dsv4_fp8_nonexpert_mode dsv4_fp8_lora_kernel dsv4_shared_mlp_lora_kernel
        dsv4_bf16_all dsv4_fp4_grouped_mode gemma4_fp8_nonexpert gemma4_nf4_nonexpert llmcompressor
        fp8_enable_fsdp_float8_all_gather"""),
    ("every weight would have been trained", "leave it out, or use adapter: lora", """
        unfrozen_parameters lisa_n_layers lisa_step_interval lisa_layers_attribute relora relora_prune_ratio
        relora_prune_method relora_cpu_offload spectrum_top_fraction spectrum_model_name freeze_mm_modules"""),
    ("the adapter would have been an ordinary new LoRA", "leave it out; lora_r and peft_use_dora are known", """
        lora_model_dir lora_target_parameters lora_rank_pattern lora_alpha_pattern peft peft_layers_to_transform
        peft_layers_pattern peft_layer_replication peft_init_lora_weights peft_trainable_token_indices
        peft_ensure_weight_tying peft_autocast_adapter_dtype loraplus_lr_ratio loraplus_lr_embedding mora"""),
    ("one optimizer with one learning rate would have run", "leave it out (dtrain config schema lists every key)", """
        embedding_lr embedding_lr_scale lr_groups lr_div_factor lr_scheduler_kwargs lr_quadratic_warmup
        cosine_constant_lr_ratio optim_args optim_target_modules adam_beta3 adam_epsilon2 dion_lr dion_momentum
        dion_rank_fraction dion_rank_multiple_of qgalore_rank qgalore_update_proj_gap qgalore_scale
        qgalore_proj_type qgalore_proj_quant qgalore_proj_bits qgalore_proj_group_size qgalore_cos_threshold
        qgalore_gamma_proj qgalore_queue_size grokfast_alpha grokfast_lamb torchdistx_path
        jagged_restart_steps jagged_restart_warmup_steps jagged_restart_anneal_steps"""),
    ("no noise would have been added to the embeddings", "leave it out", "neftune_noise_alpha noisy_embedding_alpha"),
    ("rows would have come in another order", "shuffle: false keeps the file's order: sort the file as you want it", """
        curriculum_sampling group_by_length sample_packing_sequentially"""),
    ("the data would not have been read", "list the data under `datasets:` with type: completion", """
        pretraining_dataset streaming pretrain_multipack_attn pretraining_sample_concatenation"""),
    ("all rows would have been used", "`shards: n` under a dataset takes the first of n parts", """
        dataset_shard_num dataset_shard_idx"""),
    ("positions would have been ordinary ones", "leave it out", """
        use_pose pose_split_on_token_ids pose_max_context_len pose_num_chunks"""),
    ("the tokenizer would have been the model's own", "leave it out, or name another one in tokenizer_config", """
        tokenizer_legacy tokenizer_use_mistral_common added_tokens_overrides resize_token_embeddings_to_32x
        mean_resizing_embeddings shrink_embeddings fix_untrained_tokens"""),
    ("images and sound would have been left out", "dtrain trains on text only", """
        processor_type processor_kwargs image_size image_resize_algorithm role_boundaries"""),
    ("the chat template would have been rendered without it", "write it into chat_template_jinja", """
        chat_template_kwargs default_system_message"""),
    ("the last weights would have been kept, not the best", "leave it out; early_stopping_patience stops in time", """
        load_best_model_at_end"""),
    ("training would have started at step 0", "`dtrain resume RUN` goes on where a run stopped", """
        resume_from_checkpoint auto_resume_from_checkpoints"""),
    ("nothing would have been uploaded", "leave it out, and upload output_dir afterwards (hf upload)", """
        hub_model_id hub_strategy hub_revision push_dataset_to_hub"""),
    ("the micro-batch would have stayed as it is", "micro_batch_size: auto", "auto_find_batch_size"),
    ("sequence_len would have stayed at its default", "sequence_len with sample_packing: true",
        "max_packed_sequence_len"),
    ("DeepSpeed would have run uncompiled", "leave it out", "deepcompile"),
    ("torch's own kernels would have run", "leave it out; attention and cross_entropy choose fast kernels", """
        flash_attn_rms_norm unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o unsloth_rms_norm
        unsloth_cross_entropy_loss unsloth_rope"""),
    ("the run would have started here", "say where at the command line: --profile and --on; options go under launchers",
        """use_ray provider gpu gpu_count node_count volumes branch dockerfile_commands memory timeout
        memory_preprocess timeout_preprocess secrets project_name"""),
    (UNKNOWN_TO_AXOLOTL, "leave it out", """
        gptq_groupsize gptq_model_v1 gptq_disable_exllama debug test_value full_finetune
        base_model_ignore_patterns"""),
)  # fmt: skip

_ONLY: dict[str, Rule] = {
    "save_safetensors": Refused("models would be saved as safetensors all the same", "leave it out", (True,)),
    "expert_parallel_size": Refused("experts would not have been spread", "leave it out", (1,)),
    "metric_for_best_model": Refused("the held-out loss would have decided", "leave it out", ("loss", "eval_loss")),
    "greater_is_better": Refused("the held-out loss would have decided", "leave it out"),
}

_LOOKALIKES = {
    "adam_eps": "adam_epsilon", "adam_beta_1": "adam_beta1", "adam_beta_2": "adam_beta2",
    "eta_min": "cosine_min_lr_ratio", "min_lr_ratio": "cosine_min_lr_ratio",
    "context_parapllel_size": "sequence_parallel_size", "torch_dtype": "bf16", "dtype": "bf16", "lr": "learning_rate",
    "epochs": "num_epochs", "num_train_epochs": "num_epochs", "max_seq_length": "sequence_len",
    "max_seq_len": "sequence_len", "seq_len": "sequence_len", "seq_length": "sequence_len",
    "max_length": "sequence_len", "cutoff_len": "sequence_len", "per_device_train_batch_size": "micro_batch_size",
    "per_device_eval_batch_size": "eval_batch_size", "train_batch_size": "global_batch_size",
    "gradient_clipping": "max_grad_norm", "lr_scheduler_type": "lr_scheduler", "optim": "optimizer",
    "packing": "sample_packing", "model": "base_model", "model_name": "base_model",
    "model_name_or_path": "base_model", "dataset": "datasets", "lora_rank": "lora_r",
    "lora_target": "lora_target_modules", "run_name": "wandb_name", "report_to": "use_wandb",
    "warmup": "warmup_ratio", "eval_dataset": "test_datasets", "quantization_bit": "load_in_4bit",
}  # fmt: skip
"""Slips seen in Axolotl's own examples, and the names of TRL, transformers, DeepSpeed and LLaMA-Factory."""

KEYS: Table = {
    **_SPELLINGS,
    **{key: rule for why, keys in _HARMLESS for key, rule in _each(keys, Harmless(why))},
    **{key: rule for ignored, instead, keys in _REFUSED for key, rule in _each(keys, Refused(ignored, instead))},
    **_ONLY,
    **{key: Lookalike(meant) for key, meant in _LOOKALIKES.items()},
}
"""Top-level name → what becomes of it. A name that is ours is here only if some of its values are translated."""

_PREFERENCES = "dtrain trains on the next token only; " + _OTHER_TRAINING
_DATASET_REFUSED: tuple[tuple[str, str, str], ...] = (
    ("pairs and steps would have been read as plain rows", _PREFERENCES, """
        field_chosen field_rejected step_separator max_completion_length train_on_last_step_only logprobs_field
        temperature field_prompt field_completion field_label"""),
    ("the message would have been rendered without it", "leave it out, or prepare the rows yourself", """
        field_tools field_thinking template_thinking_key split_thinking drop_system_message message_field_training
        message_field_training_detail input_transform input_format"""),
    ("the columns would have been looked for under other names", "use field_messages and message_property_mappings",
        "field_human field_model"),
    ("the tokenizer's own template would have been used", "`chat_template: chatml`, or its text in chat_template_jinja",
        "conversation"),
    ("the file's template would have been used", "chat_template_jinja at the top level", "chat_template_jinja"),
    ("code from the hub would not have run", "download the data and name the files", "trust_remote_code"),
    ("the first part would have been read", "leave it out: `shards: n` takes the first of n parts", "shards_idx"),
    ("all rows would have been read", "split: train[100:] skips rows", "skip"),
    ("random rows would not have been made", "leave it out", "length min_input_id max_input_id seed sequence_length"),
)  # fmt: skip

DATASET_KEYS: Table = {
    "type": Moved(moves.dataset_type, "type"),
    "chat_template": Moved(moves.chat_template, _TEMPLATE),
    "message_field_role": Alias("message_property_mappings.role"),
    "message_field_content": Alias("message_property_mappings.content"),
    "text_column": Alias("field"),
    "preprocess_shards": Harmless("how Axolotl loads; dtrain plans its own batches"),
    "train_on_eot": Refused("end-of-turn tokens would follow train_on_eos", "train_on_eos", ("turn",)),
    **{
        key: rule for ignored, instead, keys in _DATASET_REFUSED for key, rule in _each(keys, Refused(ignored, instead))
    },
}
"""Keys of one entry of `datasets` or `test_datasets`."""
